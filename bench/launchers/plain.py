"""Stock vLLM: two identical engines, one on each core, that know nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence

from bench.client import Client
from bench.launchers.engine import Engine, start_all
from bench.launchers.lanes import Lanes
from bench.launchers.system import Setting
from bench.processes import Child


class Plain(Lanes):
    """See Lanes."""

    name = "plain"

    def __init__(self, setting: Setting, client: Client) -> None:
        super().__init__(
            [Engine(f"plain-{core}", core, setting, client) for core in (0, 1)], client
        )

    async def start(self) -> None:
        """See System."""
        await start_all({engine: (None, {}) for engine in self._engines})

    async def stop(self) -> None:
        """See System."""
        for engine in self._engines:
            await engine.stop()

    def children(self) -> Sequence[Child]:
        """See System."""
        return [engine.child for engine in self._engines]
