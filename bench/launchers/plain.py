"""Stock vLLM: two identical engines, one on each core, that know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.client import Body, Client, Timeline
from bench.counters import CacheCounters
from bench.launchers.engine import Engine, start_all
from bench.launchers.system import Setting
from bench.processes import Child


class Plain:
    """``lane`` deals requests round robin: lane 0 is always the engine on core 0."""

    name = "plain"

    def __init__(self, setting: Setting, client: Client) -> None:
        self._client = client
        self._engines = [Engine(f"plain-{core}", core, setting, client) for core in (0, 1)]

    async def start(self) -> None:
        """See System."""
        await start_all({engine: (None, {}) for engine in self._engines})

    async def stop(self) -> None:
        """See System."""
        for engine in self._engines:
            await engine.stop()

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        """See System."""
        return await self._client.stream(self._engine(lane).endpoint, body, intended)

    async def complete(self, body: Body, lane: int = 0) -> Mapping[str, Any]:
        """See System."""
        return await self._client.post(self._engine(lane).endpoint, "/v1/completions", body)

    async def forget(self) -> None:
        """Both engines decode; both forget."""
        for engine in self._engines:
            await engine.reset()

    async def counters(self) -> Mapping[str, CacheCounters]:
        """The engine of lane 0 is the one measured alone."""
        first, second = self._engines
        return {"decode": await first.counters(), "idle": await second.counters()}

    def children(self) -> Sequence[Child]:
        """See System."""
        return [engine.child for engine in self._engines]

    def _engine(self, lane: int) -> Engine:
        return self._engines[lane % len(self._engines)]
