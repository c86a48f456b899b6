"""Rounds of bursts through two proxies, each in front of stub workers of its own.

Two processes of one program can differ by a twentieth for as long as they run, whatever they do: so
every round starts both proxies anew and has them change places, each in front of the workers that
the other one had, and a round's figure is of many short bursts by turns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench import processes
from bench.client import Client, Endpoint
from bench.isolation.builds import copied, without_isolation
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

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bursts:
    """Of a round: what its ``requests`` took of the proxy's CPU, ``computed``, and in ``seconds``
    by the clock.
    """

    requests: int = 0
    computed: float = 0.0
    seconds: float = 0.0

    @property
    def us(self) -> float:
        """CPU time of the proxy for a request."""
        return self.computed / self.requests * 1e6

    @property
    def busy(self) -> float:
        """The part of the time for which the proxy computed."""
        return self.computed / self.seconds

    @property
    def per_second(self) -> float:
        """Requests."""
        return self.requests / self.seconds

    def __add__(self, other: Bursts) -> Bursts:
        return Bursts(
            self.requests + other.requests,
            self.computed + other.computed,
            self.seconds + other.seconds,
        )


@dataclass
class Taken:
    """By build and kind of prompt, round by round; ``others``: cores, of strangers."""

    bursts: dict[tuple[Build, Kind], list[Bursts]] = field(default_factory=dict)
    others: float = 0.0


@dataclass(frozen=True)
class Stand:
    """A build's proxy as it runs in a round. ``key``: with which all requests come; "": each with
    its tenant's.
    """

    driver: Driver
    proxy: Child
    key: str


async def measure(amounts: Amounts, model: Path, say: Say) -> Taken:
    """All rounds. Raises StartFailed, RoutingFailed, IsolationFailed."""
    where = cores()
    # Sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="kvf-i-") as folder, bound_to(where.clients):
        async with AsyncExitStack() as stack:
            pair = Pair(stack, amounts, Places(Path(folder), model, where))
            await pair.open()
            watch = CpuWatch(pair.workers)
            own = 0.0
            for number in range(amounts.rounds):
                own += await pair.round()
                say(f"round {number + 1} of {amounts.rounds}")
            pair.taken.others = max(0.0, watch.others() - own / watch.seconds)
            return pair.taken


class Pair:
    """Two fleets of workers, until ``stack`` is left, and both builds of the proxy."""

    def __init__(self, stack: AsyncExitStack, amounts: Amounts, places: Places) -> None:
        self.taken = Taken()
        self.workers: list[Child] = []
        self._stack = stack
        self._amounts = amounts
        self._places = places
        self._dice = random.Random(amounts.seed)
        self._keys = [secrets.token_urlsafe(24) for _ in range(TENANTS + 1)]
        sizes: dict[Kind, int] = {"1k": amounts.small, "220k": amounts.long}
        self._prompts = Prompts(MODEL, self._keys, sizes, OUTPUT_TOKENS, amounts.seed)
        self._fleets: list[Fleet] = []
        self._packages: dict[Build, Path] = {}
        self._key: dict[Build, str] = {"isolated": "", "alone": self._keys[0]}

    async def open(self) -> None:
        """All workers listen, and both copies of the proxy are there."""
        for name in ("one", "other"):
            fleet = Fleet(name, self._amounts.workers, self._keys, self._places)
            workers = await fleet.start()
            self._stack.push_async_callback(processes.stop, workers, _STOP_SECONDS)
            self.workers.append(workers)
            self._fleets.append(fleet)
        pieces = {"isolated": (), "alone": without_isolation(self._key["alone"])}
        for build in BUILDS:
            folder = self._places.folder / f"{build}-packages"
            self._packages[build] = copied(folder, pieces[build])

    async def round(self) -> float:
        """Bursts of either kind through both, close together; CPU seconds of the proxies in all."""
        async with AsyncExitStack() as stack:
            self._fleets.reverse()
            stands = {
                build: await self._started(stack, build, fleet)
                for build, fleet in zip(BUILDS, self._fleets, strict=True)
            }
            for kind, stand in itertools.product(KINDS, stands.values()):
                await stand.driver.one_by_one(self._requests(stand, kind, TENANTS))
                await self._burst(stand, kind)
            if not self.taken.bursts:
                await asyncio.sleep(_HEARD_SECONDS)
                await self._check(stands)
            for kind in self._dice.sample(KINDS, len(KINDS)):
                sums = dict.fromkeys(BUILDS, Bursts())
                for _ in range(self._amounts.turns):
                    for name in self._dice.sample(BUILDS, len(BUILDS)):
                        sums[name] += await self._burst(stands[name], kind)
                for name, total in sums.items():
                    self.taken.bursts.setdefault((name, kind), []).append(total)
            return sum(_computed(stand.proxy) for stand in stands.values())

    async def _check(self, stands: Mapping[Build, Stand]) -> None:
        """Raises IsolationFailed unless the builds are what they are to be: the one tells tenants
        apart and the other does not, and both find what is held.
        """
        first, second = self._prompts.shared("220k", 2)
        for name, stand in stands.items():
            if not await self._cached(stand, _sent(stand, first)):
                raise IsolationFailed(f"{name}: the proxy finds nothing that its workers hold")
        foreign = dataclasses.replace(first, key=second.key)
        if await self._cached(stands["isolated"], foreign):
            raise IsolationFailed("the proxy serves a tenant what is another's")
        if await self._cached(stands["alone"], foreign) is not None:
            raise IsolationFailed("the proxy for a single client lets another one in")

    async def _cached(self, stand: Stand, asked: Asked) -> int | None:
        """Tokens that were found; None where the client is not let in. Raises IsolationFailed."""
        headers = {"authorization": f"Bearer {asked.key}", "content-type": "application/json"}
        at = Endpoint(f"http://{stand.driver.base}", headers)
        async with Client(REQUEST_SECONDS) as client:
            told = await client.send(at, PATH, asked.body(), time.monotonic())
        if told.status == 401:
            return None
        if told.error:
            raise IsolationFailed(told.error)
        return told.cached_tokens

    async def _burst(self, stand: Stand, kind: Kind) -> Bursts:
        seconds = self._amounts.seconds
        requests = self._requests(stand, kind, math.ceil(_MOST_RATE[kind] * seconds))
        before = _computed(stand.proxy)
        found = await stand.driver.burst(requests, self._amounts.concurrency, seconds)
        return Bursts(found.requests, _computed(stand.proxy) - before, found.seconds)

    def _requests(self, stand: Stand, kind: Kind, count: int) -> Iterator[bytes]:
        asked = self._prompts.shared(kind, count)
        return (_sent(stand, one).request(stand.driver.base) for one in asked)

    async def _started(self, stack: AsyncExitStack, build: Build, fleet: Fleet) -> Stand:
        router = Kvferry(fleet, self._packages[build])
        proxy = await router.start()
        stack.push_async_callback(processes.stop, proxy, _STOP_SECONDS)
        driver = Driver(router.base)
        stack.push_async_callback(driver.close)
        return Stand(driver, proxy, self._key[build])


def _sent(stand: Stand, asked: Asked) -> Asked:
    """``asked`` with the key that this build knows."""
    return dataclasses.replace(asked, key=stand.key) if stand.key else asked


def _computed(child: Child) -> float:
    return sum(processes.computed([child]).values())
