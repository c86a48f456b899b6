"""Engines that are all alike: requests are dealt to them in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.client import Body, Client, Timeline
from bench.counters import CacheCounters
from bench.launchers.engine import Engine


class Lanes:
    """What systems of two such engines share. Lane 0 is always the engine on core 0."""

    def __init__(self, engines: Sequence[Engine], client: Client) -> None:
        self._engines = engines
        self._client = client

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        """See System."""
        return await self._client.stream(self._engine(lane).endpoint, body, intended)

    async def complete(self, body: Body, lane: int = 0) -> Mapping[str, Any]:
        """See System."""
        return await self._client.post(self._engine(lane).endpoint, "/v1/completions", body)

    async def forget(self) -> None:
        """All of them decode; all forget."""
        for engine in self._engines:
            await engine.reset()

    async def counters(self) -> Mapping[str, CacheCounters]:
        """The engine of lane 0 is the one measured alone."""
        first, second = self._engines
        return {"decode": await first.counters(), "idle": await second.counters()}

    def _engine(self, lane: int) -> Engine:
        return self._engines[lane % len(self._engines)]
