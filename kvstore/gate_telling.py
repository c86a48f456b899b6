"""A worker's supervisor keeps its engine's gate told of what holds for tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from kvstore import probe
from kvstore.messages import Standing
from kvstore.standings import TENANCY_PATH, Standings, parts

SECONDS = 2.0
"""How long a gate may take to put it in force."""

AGAIN_SECONDS = 0.1
"""After which one that did not is told again."""


class GateTelling:
    """For one event loop. ``token``: as HTTP headers."""

    def __init__(self, token: Mapping[str, str]) -> None:
        self._token = token
        self._loop: asyncio.AbstractEventLoop | None = None
        self._standings = Standings()
        self._owed: dict[str, Standing] = {}
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """From now on ``changed`` may be called, by any thread."""
        self._loop = asyncio.get_running_loop()

    def changed(self, standings: Sequence[Standing]) -> None:
        """These hold from now on."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._take, tuple(standings))

    async def all(self, http: str) -> bool:
        """Tells a new engine's gate everything; whether it is in force there."""
        told = list(self._standings.parts())
        self._owed = {}
        # Also where there is nothing to tell: until it was told once a gate lets nobody in.
        return await self._tell(http, told or [()])

    async def keep(self, http: str) -> None:
        """Tells that gate of whatever changes, until it is cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            owed, self._owed = self._owed, {}
            if not await self._tell(http, parts(owed.values())):
                self._owed = owed | self._owed
                self._changed.set()
                await asyncio.sleep(AGAIN_SECONDS)

    def _take(self, standings: Iterable[Standing]) -> None:
        self._owed |= {one.tag: one for one in self._standings.take(standings)}
        self._changed.set()

    async def _tell(self, http: str, told: Iterable[Sequence[Standing]]) -> bool:
        for part in told:
            body = msgspec.json.encode(part)
            answer = await probe.post(http, TENANCY_PATH, SECONDS, self._token, body)
            if answer.status != 200:
                return False
        return True
