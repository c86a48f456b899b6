"""The server under load, and how a planned request is put to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from bench.client import Endpoint

Api = Literal["chat", "completions"]

PATHS: Mapping[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """``base``: ``http://host:port``. ``keys``: API keys; tenants take them in turn, so as many as
    tenants give each its own. ``extra``: further fields of every body. ``timeout_seconds``: after
    which a request is given up."""

    base: str
    model: str
    api: Api = "completions"
    keys: tuple[str, ...] = ()
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)
    timeout_seconds: float = 600.0

    @property
    def path(self) -> str:
        """Where requests go."""
        return PATHS[self.api]

    def endpoint(self, tenant: int) -> Endpoint:
        """Where ``tenant`` connects to, with its key."""
        if not self.keys:
            return Endpoint(self.base)
        key = self.keys[tenant % len(self.keys)]
        return Endpoint(self.base, {"authorization": f"Bearer {key}"})

    def body(self, talk: Sequence[str], output_tokens: int) -> bytes:
        """JSON of a streaming request. ``talk``: user and assistant in turn, user first and last;
        a completion continues all of it."""
        asked: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.api == "chat":
            roles = ("user", "assistant")
            asked["messages"] = [
                {"role": roles[index % 2], "content": text} for index, text in enumerate(talk)
            ]
        else:
            asked["prompt"] = "".join(talk)
        return msgspec.json.encode({**asked, **self.extra})
