"""The ASGI middleware in front of a worker's vLLM server.

It lets only kvferry's own proxies in, and tells them how the engine turns text into tokens; what a
leg is told beyond vLLM's answer is its role's (``prefill.gate``, ``decode.gate``). vLLM loads it by
name (``--middleware``) and gives it nothing, so it finds its settings where vLLM keeps the
connector's.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from kvstore.cluster import WorkerSettings
from kvstore.credentials import TOKEN_HEADER, load_or_create
from kvstore.engine_facts import text_rules_of, worker_settings
from kvstore.text_rules import TEXT_RULES_PATH

TRANSFER_HEADER = b"x-kvferry-transfer"

_OPEN_PATHS = frozenset({"/health"})

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """The middleware; one per worker's API process. A role says what else it does."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._token = b""
        self._is_open = False
        self._text_rules: bytes | None = None

    def listen(self, settings: WorkerSettings) -> None:
        """Begin to listen to the worker's connectors, on the running event loop."""
        raise NotImplementedError

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a proxy's call."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "lifespan"}:
            return  # Nothing of ours speaks anything but HTTP; a websocket would come in unasked.
        if not self._is_open:
            self._open(scope)
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["path"] not in _OPEN_PATHS and not self._admits(dict(scope["headers"])):
            await answer(send, 401, b'{"error":"only this cluster\'s proxies may call a worker"}')
        elif scope["path"] == TEXT_RULES_PATH:
            await self._tell_text_rules(scope, send)
        else:
            await self.serve(scope, receive, send)

    def _open(self, scope: Scope) -> None:
        """Read the settings off the application and begin to listen to the connector."""
        args = scope["app"].state.args
        settings = worker_settings(args.kv_transfer_config.kv_connector_extra_config)
        self._token = load_or_create(Path(settings.state_dir)).http_token().encode()
        self.listen(settings)
        self._is_open = True

    async def _tell_text_rules(self, scope: Scope, send: Send) -> None:
        if self._text_rules is None:
            # Kept, some megabytes: writing it out stops all else for up to half a second, so that
            # is best done when the first proxy asks, which is before the first client does.
            rules = await asyncio.to_thread(text_rules_of, scope["app"].state)
            self._text_rules = b"" if rules is None else msgspec.json.encode(rules)
        if self._text_rules:
            await answer(send, 200, self._text_rules)
        else:
            await answer(send, 404, b'{"error":"this tokenizer cannot be told"}')

    def _admits(self, headers: dict[bytes, bytes]) -> bool:
        return hmac.compare_digest(headers.get(TOKEN_HEADER.encode(), b""), self._token)


def named_transfer(scope: Scope) -> bytes | None:
    """The transfer that a call's header names; None where it names none."""
    headers = dict(scope["headers"])
    return parsed_transfer(headers.get(TRANSFER_HEADER, b"").decode("latin-1"))


def parsed_transfer(text: str) -> bytes | None:
    """A transfer from its hex digits; None where it is none."""
    try:
        transfer = bytes.fromhex(text)
    except ValueError:
        return None
    return transfer if len(transfer) == 16 else None


async def answer(send: Send, status: int, body: bytes) -> None:
    """A whole JSON answer."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
