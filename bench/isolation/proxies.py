"""Rounds of bursts through two proxies, each in front of stub workers of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench import processes
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from bench.isolation.builds import Piece, build, without_isolation
from bench.isolation.settings import Amounts, IsolationFailed
from bench.noise import CpuWatch
from bench.processes import Child
from bench.routing.driver import REQUEST_SECONDS, Driver
from bench.routing.fleet import OUTPUT_TOKENS
from bench.routing.measuring import bound_to
from bench.routing.prompts import KINDS, PATH, Asked, Kind, Prompts
from bench.routing.settings import TENANTS, Places, cores
from bench.routing.systems import MODEL, Fleet, Kvferry

Build = Literal["isolated", "alone"]
BUILDS: tuple[Build, Build] = ("isolated", "alone")
"""The proxy as it is, and one that knows a single client."""

_MOST_RATE: dict[Kind, int] = {"1k": 3000, "220k": 600}
_HEARD_SECONDS = 1.0
_STOP_SECONDS = 5.0
_WARM_SECONDS = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Burst:
    """``us``: what a request cost its proxy, of CPU. ``busy``: the part of the time for which the
    proxy computed.
    """

    us: float
    busy: float
    per_second: float


@dataclass
class Taken:
    """By build and kind of prompt, round by round; ``others``: cores, of strangers."""

    bursts: dict[tuple[Build, Kind], list[Burst]] = field(default_factory=dict)
    others: float = 0.0


@dataclass(frozen=True)
class Stand:
    """One proxy. ``key``: with which all requests come; "": each with its tenant's."""

    driver: Driver
    proxy: Child
    key: str = ""


async def measure(amounts: Amounts, model: Path, say: Say) -> Taken:
    """All rounds. Raises StartFailed, RoutingFailed, IsolationFailed."""
    where = cores()
    # Sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="kvf-i-") as folder, bound_to(where.clients):
        async with AsyncExitStack() as stack:
            pair = Pair(stack, amounts, Places(Path(folder), model, where))
            await pair.open()
            say("both proxies answer")
            watch = CpuWatch(pair.children)
            for number in range(amounts.rounds):
                await pair.round()
                say(f"round {number + 1} of {amounts.rounds}")
            pair.taken.others = watch.others()
            return pair.taken


class Pair:
    """Both proxies, until ``stack`` is left."""

    def __init__(self, stack: AsyncExitStack, amounts: Amounts, places: Places) -> None:
        self.taken = Taken()
        self.children: list[Child] = []
        self._stack = stack
        self._amounts = amounts
        self._places = places
        self._dice = random.Random(amounts.seed)
        self._keys = [secrets.token_urlsafe(24) for _ in range(TENANTS + 1)]
        sizes: dict[Kind, int] = {"1k": amounts.small, "220k": amounts.long}
        self._prompts = Prompts(MODEL, self._keys, sizes, OUTPUT_TOKENS, amounts.seed)
        self._stands: dict[Build, Stand] = {}

    async def open(self) -> None:
        """Starts everything; workers know all tenants' prompts, and the proxies know of it."""
        only = self._keys[0]
        self._stands["isolated"] = await self._stand("isolated", self._keys, [])
        alone = await self._stand("alone", [only], without_isolation(only))
        self._stands["alone"] = dataclasses.replace(alone, key=only)
        for kind, stand in itertools.product(KINDS, self._stands.values()):
            await stand.driver.one_by_one(self._requests(stand, kind, TENANTS))
            warm = self._requests(stand, kind, round(_MOST_RATE[kind] * _WARM_SECONDS))
            await stand.driver.burst(warm, self._amounts.concurrency, _WARM_SECONDS)
        await asyncio.sleep(_HEARD_SECONDS)
        await self._check()

    async def round(self) -> None:
        """A burst of either kind through both, close together."""
        for kind in self._dice.sample(KINDS, len(KINDS)):
            for name in self._dice.sample(BUILDS, len(BUILDS)):
                found = await self._burst(self._stands[name], kind)
                self.taken.bursts.setdefault((name, kind), []).append(found)

    async def _check(self) -> None:
        """Raises IsolationFailed unless the builds are what they are to be: the one tells tenants
        apart and the other does not, and both find what is held.
        """
        first, second = self._prompts.shared("220k", 2)
        for name, stand in self._stands.items():
            own = first if not stand.key else dataclasses.replace(first, key=stand.key)
            if not await self._cached(stand, own):
                raise IsolationFailed(f"{name}: the proxy finds nothing that its workers hold")
        foreign = dataclasses.replace(first, key=second.key)
        if await self._cached(self._stands["isolated"], foreign):
            raise IsolationFailed("the proxy serves a tenant what is another's")
        if await self._cached(self._stands["alone"], foreign) is not None:
            raise IsolationFailed("the proxy for a single client lets another one in")

    async def _cached(self, stand: Stand, asked: Asked) -> int | None:
        """Tokens that were found; None where the client is not let in. Raises IsolationFailed."""
        headers = {"authorization": f"Bearer {asked.key}", "content-type": "application/json"}
        at = Endpoint(f"http://{stand.driver.base}", headers)
        async with Client(REQUEST_SECONDS) as client:
            try:
                told = await client.send(at, PATH, asked.body(), time.monotonic())
            except RequestFailed as error:
                raise IsolationFailed(str(error)) from None
        if told.status == 401:
            return None
        if told.error:
            raise IsolationFailed(told.error)
        return told.cached_tokens

    async def _burst(self, stand: Stand, kind: Kind) -> Burst:
        seconds = self._amounts.seconds
        requests = self._requests(stand, kind, round(_MOST_RATE[kind] * seconds))
        before = _computed(stand.proxy)
        found = await stand.driver.burst(requests, self._amounts.concurrency, seconds)
        spent = _computed(stand.proxy) - before
        return Burst(spent / found.requests * 1e6, spent / found.seconds, found.rate)

    def _requests(self, stand: Stand, kind: Kind, count: int) -> Iterator[bytes]:
        asked = self._prompts.shared(kind, count)
        if stand.key:
            asked = [dataclasses.replace(one, key=stand.key) for one in asked]
        return (one.request(stand.driver.base) for one in asked)

    async def _stand(self, name: Build, keys: Sequence[str], pieces: Sequence[Piece]) -> Stand:
        fleet = Fleet(name, self._amounts.workers, keys, self._places)
        self._kept(await fleet.start())
        packages = build(self._places.folder / f"{name}-packages", pieces)
        router = Kvferry(fleet, packages)
        proxy = self._kept(await router.start())
        driver = Driver(router.base)
        self._stack.push_async_callback(driver.close)
        return Stand(driver, proxy)

    def _kept(self, child: Child) -> Child:
        self.children.append(child)
        self._stack.push_async_callback(processes.stop, child, _STOP_SECONDS)
        return child


def _computed(child: Child) -> float:
    return sum(processes.computed([child]).values())
