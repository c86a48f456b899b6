"""Sends a canary by every path that a prompt can take, those that end in errors as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bench.audit import prompts
from bench.audit.asking import CHAT, COMPLETIONS, Answer, Asker, answered
from bench.audit.deployment import TestTenant
from bench.audit.volatile import canary
from bench.client import Client
from bench.errors import RequestFailed

NO_STORE = {"cache-control": "no-store"}
_WORDS = 300
"""After the canary, so that the DRAM tier keeps whole chunks of it."""

_TOO_LONG = 400
_LEAVES_SECONDS = 0.3
_LONG_ANSWER = 400


@dataclass
class Sent:
    """Which paths were taken, with the statuses they ended in; the canary's tokens, if told."""

    statuses: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Sending:
    """Sends as ``tenant``; ``marker`` is in every prompt."""

    def __init__(self, client: Client, asker: Asker, tenant: TestTenant, marker: str) -> None:
        self._client = client
        self._asker = asker
        self._tenant = tenant
        self._text = canary.text_of(marker)

    async def all(self) -> Sent:
        """By every path, one after the other."""
        sent = Sent()
        first = await self._post(COMPLETIONS, {**self._prompt(), "return_token_ids": True})
        sent.tokens = _tokens(first)
        await self._note(sent, "completion", 200, _known(first))
        await self._note(sent, "completion, streamed", 200, self._stream(COMPLETIONS))
        await self._note(sent, "chat", 200, self._post(CHAT, self._chat()))
        await self._note(sent, "chat, streamed", 200, self._stream(CHAT))
        await self._note(sent, "no-store", 200, self._post(COMPLETIONS, self._prompt(), NO_STORE))
        warm = {**self._prompt(), "temperature": "warm"}
        await self._note(sent, "refused by an engine", 400, self._post(COMPLETIONS, warm))
        long = {"prompt": f"{self._text} " * _TOO_LONG}
        await self._note(sent, "too long", 400, self._post(COMPLETIONS, long))
        role = {"messages": [{"role": self._text, "content": self._text}]}
        await self._note(sent, "an unknown role", 400, self._post(CHAT, role))
        await self._note(sent, "no JSON", 400, self._broken())
        await self._note(sent, "a client that leaves", 0, self.left())
        return sent

    async def left(self, seconds: float = _LEAVES_SECONDS) -> Answer:
        """A request whose client goes away while it is answered."""
        fields = {**self._prompt(), "max_tokens": _LONG_ANSWER, "ignore_eos": True}
        try:
            async with asyncio.timeout(seconds):
                return await self._post(COMPLETIONS, fields)
        except TimeoutError:
            return Answer(0)

    async def _note(self, sent: Sent, name: str, wanted: int, asking: Awaitable[Answer]) -> None:
        answer = await asking
        sent.statuses[name] = answer.status
        if answer.status != wanted:
            sent.wrong.append(f"{name} ended in {answer.status}, not {wanted} {answer.error}")

    async def _post(
        self, path: str, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Answer:
        return await answered(self._asker.post(self._tenant, path, fields, headers))

    async def _stream(self, path: str) -> Answer:
        fields = self._chat() if path == CHAT else self._prompt()
        return await answered(self._asker.stream(self._tenant, path, fields))

    async def _broken(self) -> Answer:
        content = f'{{"prompt": "{self._text}'.encode()
        try:
            reply = await self._client.ask(self._tenant.endpoint, "POST", COMPLETIONS, content)
        except RequestFailed as failure:
            return Answer(0, str(failure))
        return Answer(reply.status)

    def _prompt(self) -> dict[str, Any]:
        return {"prompt": f"{self._text} {prompts.text(_WORDS)}"}

    def _chat(self) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": self._prompt()["prompt"]}]}


async def _known(answer: Answer) -> Answer:
    return answer


def _tokens(answer: Answer) -> list[int]:
    """A run of the canary's own; empty where the deployment does not tell a prompt's tokens."""
    try:
        told = msgspec.json.decode(answer.body or b"{}", type=dict[str, Any])
        ids = told["choices"][0]["prompt_token_ids"] or []
    except (msgspec.MsgspecError, LookupError):
        return []
    return list(ids[canary.FIRST_TOKEN : canary.FIRST_TOKEN + canary.TOKENS])
