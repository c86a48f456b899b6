"""Puts the mixed requests to a cluster; keeps what was said of each before and after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from bench.client import Client, Endpoint, Timeline
from bench.launchers.system import MODEL_NAME
from bench.load.words import Words
from bench.prediction.load import Wanted
from bench.records import PATH_HEADER

PATHS = {"chat": "/v1/chat/completions"}
COMPLETIONS = "/v1/completions"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Seconds, tokens; None is what nobody told.

    ``ttft``: from the actual send, as the client saw it. ``stages``: milliseconds.
    """

    number: int
    at: float
    kind: str
    error: str = ""
    path: str = ""
    prompt: int | None = None
    cached: int | None = None
    ttft: float | None = None
    predicted_cached: int | None = None
    predicted_ttft: float | None = None
    predicted: Mapping[str, float] = msgspec.field(default_factory=dict)
    stages: Mapping[str, float] = msgspec.field(default_factory=dict)
    tiers: Mapping[str, int] = msgspec.field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """As many tokens were cached as had been predicted."""
        return self.cached is not None and self.cached == self.predicted_cached

    @property
    def ratio(self) -> float | None:
        """Predicted over actual TTFT."""
        if self.predicted_ttft is None or not self.ttft:
            return None
        return self.predicted_ttft / self.ttft


class Asking:
    """``endpoints``: of each tenant."""

    def __init__(self, client: Client, endpoints: list[Endpoint], salt: str) -> None:
        self._client = client
        self._endpoints = endpoints
        self._words = Words(salt)
        self._talks: dict[int, list[dict[str, str]]] = {}
        self._turns: dict[tuple[int, int], asyncio.Event] = {}

    async def run(self, wanted: Iterable[Wanted], say: Callable[[str], None]) -> list[Asked]:
        """Everything, until the last answer has come."""
        begin, found = time.monotonic(), list[Asked]()

        async def one(each: Wanted) -> None:
            found.append(await self._ask(each, begin))
            if len(found) % 20 == 0:
                say(f"{len(found)} answered")

        async with asyncio.TaskGroup() as group:
            for each in wanted:
                await asyncio.sleep(begin + each.at - time.monotonic())
                group.create_task(one(each))
        return sorted(found, key=lambda asked: asked.number)

    async def _ask(self, wanted: Wanted, begin: float) -> Asked:
        if wanted.turn:  # it was to follow the answer to the one before
            await self._turn(wanted, wanted.turn - 1).wait()
        try:
            endpoint, path = self._endpoints[wanted.tenant], PATHS.get(wanted.kind, COMPLETIONS)
            content = msgspec.json.encode(self._body(wanted))
            now = time.monotonic()
            timeline = await self._client.send(endpoint, path, content, now, keep_text=True)
            if wanted.kind == "chat":
                answer = {"role": "assistant", "content": timeline.text}
                self._talks[wanted.conversation].append(answer)
            return asked(wanted, timeline, now - begin)
        finally:
            self._turn(wanted, wanted.turn).set()

    def _turn(self, wanted: Wanted, turn: int) -> asyncio.Event:
        return self._turns.setdefault((wanted.conversation, turn), asyncio.Event())

    def _body(self, wanted: Wanted) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": MODEL_NAME,
            "max_tokens": wanted.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        words = self._words.text(wanted.words).lstrip()
        system = self._words.text(wanted.system).lstrip() if wanted.system else ""
        if wanted.kind != "chat":
            return {**body, "prompt": f"{system}\n\n{words}" if system else words}
        first = [{"role": "system", "content": system}]
        talk = self._talks.setdefault(wanted.conversation, first)
        talk.append({"role": "user", "content": words})
        return {**body, "messages": list(talk)}


def asked(wanted: Wanted, timeline: Timeline, at: float) -> Asked:
    """What became of one request."""
    if timeline.error:
        return Asked(number=wanted.number, at=at, kind=wanted.kind, error=timeline.error)
    told: Mapping[str, Any] = timeline.trailer
    predicted = told.get("predicted") or {}
    return Asked(
        number=wanted.number,
        at=at,
        kind=wanted.kind,
        path=timeline.headers.get(PATH_HEADER, ""),
        prompt=timeline.prompt_tokens,
        cached=timeline.cached_tokens,
        ttft=timeline.tokens[0] - timeline.sent,
        predicted_cached=predicted.get("cached"),
        predicted_ttft=predicted["ttft"] / 1000 if "ttft" in predicted else None,
        predicted=predicted,
        stages=told.get("stages") or {},
        tiers=told.get("cached") or {},
    )
