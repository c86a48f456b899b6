"""Puts a slice's requests to a cluster; keeps what each found and how long it waited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import msgspec

from bench.client import Client, Endpoint, Timeline
from bench.driving.quiet import no_collections
from bench.flooding.load import Wanted
from bench.flooding.settings import FloodFailed
from bench.launchers.system import MODEL_NAME
from bench.load.words import Words
from bench.records import PATH_HEADER

PATH = "/v1/completions"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One request that was answered. ``ttft``: seconds from its intended send; ``late``: by so
    much it was sent later. ``tiers``: cached tokens by tier. ``stages``: milliseconds.
    """

    tenant: str
    at: float
    ttft: float
    late: float
    prompt: int
    cached: int
    path: str
    tiers: Mapping[str, int]
    stages: Mapping[str, float]


class Asking:
    """``endpoints``: where each tenant asks."""

    def __init__(
        self, client: Client, endpoints: Mapping[str, Endpoint], salt: str, output: int
    ) -> None:
        self._client = client
        self._endpoints = endpoints
        self._words = Words(salt)
        self._output = output

    async def one_by_one(self, wanted: Sequence[Wanted]) -> list[Found]:
        """In order, each when the one before has been answered. Raises FloodFailed."""
        return [await self._ask(one, self._body(one), time.monotonic()) for one in wanted]

    async def slice(self, wanted: Sequence[Wanted], seconds: float) -> list[Found]:
        """At their times, whatever the server does; those that count. Raises FloodFailed.

        ``seconds``: for all answers, at most.
        """
        bodies = [self._body(one) for one in wanted]
        try:
            async with asyncio.timeout(seconds):
                with no_collections():
                    found = await self._at_their_times(wanted, bodies)
        except TimeoutError:
            raise FloodFailed(f"not all was answered within {seconds:g} s") from None
        return [one for one, asked in zip(found, wanted, strict=True) if asked.counted]

    async def _at_their_times(
        self, wanted: Sequence[Wanted], bodies: Sequence[bytes]
    ) -> list[Found]:
        begin = time.monotonic() - min((one.at for one in wanted), default=0.0)
        tasks: list[asyncio.Task[Found]] = []
        try:
            for one, body in zip(wanted, bodies, strict=True):
                await asyncio.sleep(begin + one.at - time.monotonic())
                tasks.append(asyncio.create_task(self._ask(one, body, begin + one.at)))
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _ask(self, wanted: Wanted, body: bytes, intended: float) -> Found:
        told = await self._client.send(self._endpoints[wanted.tenant], PATH, body, intended)
        if told.error:
            raise FloodFailed(f"a request of {wanted.tenant} failed: {told.error}")
        return found(wanted, told)

    def _body(self, wanted: Wanted) -> bytes:
        return msgspec.json.encode(
            {
                "model": MODEL_NAME,
                "prompt": self._words.prompt(wanted.prompt),
                "max_tokens": self._output,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )


def found(wanted: Wanted, told: Timeline) -> Found:
    """What became of one request."""
    return Found(
        tenant=wanted.tenant,
        at=wanted.at,
        ttft=told.ttft,
        late=told.sent - told.intended,
        prompt=told.prompt_tokens,
        cached=told.cached_tokens,
        path=told.headers.get(PATH_HEADER, ""),
        tiers=told.trailer.get("cached") or {},
        stages=told.trailer.get("stages") or {},
    )
