"""Rounds: every system is asked the same, close together in time, in another order each round."""

from __future__ import annotations

import asyncio
import math
import os
import random
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes
from bench.client import Client, Endpoint
from bench.noise import CpuWatch
from bench.processes import Child, StartFailed
from bench.routing import systems
from bench.routing.driver import REQUEST_SECONDS, Driver
from bench.routing.fleet import OUTPUT_TOKENS
from bench.routing.prompts import KINDS, PATH, Kind, Prompts
from bench.routing.rendering import Renderer
from bench.routing.settings import TENANTS, Amounts, Places, RoutingFailed, cores
from bench.routing.systems import MODEL, Fleet, Kvferry, VllmRouter
from bench.statistics import median

OURS = "kvferry"
POLICIES = ("cache_aware", "round_robin")
DIRECT = "direct"
FLEETS = ("few", "many")

_MOST_RATE: dict[Kind, int] = {"1k": 3000, "220k": 600}
"""Requests prepared for a second of a burst; who is faster ends it earlier."""
_SETTLE_SECONDS = 2.0
_HEARD_SECONDS = 1.0
_STOP_SECONDS = 5.0
_CALM_SECONDS = 180.0
_CALM_CORES = 0.7
_TOKENIZED = 5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rate:
    """A burst. ``router_us``: what a request cost the router's core; ``busy``: the part of the
    time that it computed. ``others``: likewise, of the cores of workers and clients.
    """

    per_second: float
    router_us: float = 0.0
    busy: float = 0.0
    others: float = 0.0


@dataclass
class Taken:
    """What a run has measured, round by round. By system and kind of prompt: ``rates``, ``ttfts``
    (seconds, median of a round). ``novel``: likewise TTFTs, of prompts never seen before, by
    system. ``scale``: kvferry's rates by fleet. ``tokenizing``: seconds for the ``new`` text of a
    long prompt, and for a ``novel`` one. ``missing``: why there is no peer, else its version.
    ``restless``: the proxy of many workers was busy without requests; ``unscaled``: why there are
    no bursts, or not all, with them.
    """

    rates: dict[tuple[str, Kind], list[Rate]] = field(default_factory=dict)
    ttfts: dict[tuple[str, Kind], list[float]] = field(default_factory=dict)
    novel: dict[str, list[float]] = field(default_factory=dict)
    scale: dict[str, list[Rate]] = field(default_factory=dict)
    tokenizing: dict[str, list[float]] = field(default_factory=dict)
    missing: str = ""
    peer: str = ""
    others: float = 0.0
    restless: bool = False
    unscaled: str = ""


@dataclass(frozen=True)
class Stand:
    """A system as it is asked: where, and who computes for it. ``router``: None where workers are
    asked directly.
    """

    driver: Driver
    workers: Child
    router: Child | None = None


async def measure(amounts: Amounts, model: Path, say: Say) -> Taken:
    """All rounds. Raises StartFailed, RoutingFailed."""
    where = cores()
    # Sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="kvf-r-") as folder, bound_to(where.clients):
        async with AsyncExitStack() as stack:
            floor = Floor(stack, amounts, Places(Path(folder), model, where))
            await floor.open(say)
            watch = CpuWatch(floor.children)
            for number in range(amounts.rounds):
                await floor.round()
                say(f"round {number + 1} of {amounts.rounds}")
            floor.taken.others = watch.others()
            if amounts.many:
                try:
                    await floor.scale(say)
                except (StartFailed, RoutingFailed) as error:
                    # All else was measured, and took minutes.
                    floor.taken.unscaled = f"{amounts.many} workers: {error}"
                    say(floor.taken.unscaled)
            return floor.taken


@contextmanager
def bound_to(core: int) -> Iterator[None]:
    """This process on ``core`` alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Floor:
    """Everything that is up, until ``stack`` is left."""

    def __init__(self, stack: AsyncExitStack, amounts: Amounts, places: Places) -> None:
        self.taken = Taken()
        self.children: list[Child] = []
        self._stack = stack
        self._amounts = amounts
        self._places = places
        self._source = random.Random(amounts.seed)
        self._keys = [secrets.token_urlsafe(24) for _ in range(TENANTS + 1)]
        self._renderer = Renderer(places.model)
        sizes: dict[Kind, int] = {"1k": amounts.small, "220k": amounts.long}
        self._prompts = Prompts(MODEL, self._keys, sizes, OUTPUT_TOKENS, amounts.seed)
        self._stands: dict[str, Stand] = {}

    async def open(self, say: Say) -> None:
        """Starts everything, and asks for every prompt's shared part once."""
        few, workers = await self._fleet("few", self._amounts.workers)
        ours = Kvferry(few)
        routers: dict[str, Kvferry | VllmRouter] = {OURS: ours}
        self.taken.missing = "" if systems.peer_version() else systems.ADVICE
        if self.taken.missing:
            say(self.taken.missing)
        else:
            self.taken.peer = f"{systems.PEER} {systems.peer_version()}"
            routers |= {policy: VllmRouter(policy, few) for policy in POLICIES}
        for name, router in routers.items():
            self._stands[name] = await self._stand(router, workers)
        direct = self._driver(few.bases("decode")[0])
        self._stands[DIRECT] = Stand(direct, workers)
        for kind in KINDS:
            for stand in self._stands.values():
                await stand.driver.one_by_one(self._requests(stand, kind, TENANTS))
        await self._check_hits()
        say(f"all answer: {', '.join(self._stands)}")

    async def _check_hits(self) -> None:
        """Raises RoutingFailed unless the proxy knows what its workers hold by now."""
        await asyncio.sleep(_HEARD_SECONDS)
        base = self._stands[OURS].driver.base
        asked = self._prompts.shared("220k", 1)[0]
        at = Endpoint(f"http://{base}", {"authorization": f"Bearer {asked.key}"})
        async with Client(REQUEST_SECONDS) as client:
            told = await client.send(at, PATH, asked.body(), time.monotonic())
        if told.error or not told.cached_tokens:
            raise RoutingFailed(f"the proxy finds nothing of a prompt that was asked {told.error}")

    async def round(self) -> None:
        """Every figure once."""
        cases = [(kind, take) for kind in KINDS for take in (self._rate, self._ttft)]
        for kind, take in self._source.sample(cases, len(cases)):
            for name in self._shuffled(self._stands):
                await take(name, kind)
        for name in self._shuffled([OURS, DIRECT]):
            stand = self._stands[name]
            asked = self._prompts.novel("220k", self._amounts.novel)
            found = await stand.driver.one_by_one([one.request(stand.driver.base) for one in asked])
            self.taken.novel.setdefault(name, []).append(median(found))
        self._tokenize()

    async def scale(self, say: Say) -> None:
        """As many rounds of bursts, with few workers and with many."""
        fleet, workers = await self._fleet("many", self._amounts.many)
        many = await self._stand(Kvferry(fleet), workers)
        self._stack.callback(_signal, many, signal.SIGCONT)  # who is stopped cannot end
        await many.driver.one_by_one(self._requests(many, "1k", TENANTS))
        say(f"{self._amounts.many} workers are known")
        self.taken.restless = not await _calm(many)
        for _ in range(self._amounts.rounds):
            for name in self._shuffled(FLEETS):
                rate = await (self._without(many) if name == "few" else self._burst(many, "1k"))
                self.taken.scale.setdefault(name, []).append(rate)
        say(f"bursts with {self._amounts.workers} and {self._amounts.many} workers are over")

    async def _without(self, many: Stand) -> Rate:
        """A burst with few workers. Even idle, a large fleet would take much of its cores: it is
        stopped, for less time than it takes a worker that is not heard of to be given up.
        """
        _signal(many, signal.SIGSTOP)
        try:
            return await self._burst(self._stands[OURS], "1k")
        finally:
            _signal(many, signal.SIGCONT)
            await asyncio.sleep(_SETTLE_SECONDS)

    async def _ttft(self, name: str, kind: Kind) -> None:
        stand = self._stands[name]
        requests = self._requests(stand, kind, self._amounts.requests)
        found = await stand.driver.one_by_one(list(requests))
        self.taken.ttfts.setdefault((name, kind), []).append(median(found))

    async def _rate(self, name: str, kind: Kind) -> None:
        rate = await self._burst(self._stands[name], kind)
        self.taken.rates.setdefault((name, kind), []).append(rate)

    async def _burst(self, stand: Stand, kind: Kind) -> Rate:
        seconds = self._amounts.seconds
        count = math.ceil(_MOST_RATE[kind] * seconds)
        requests = self._requests(stand, kind, count)
        before = _computed(stand)
        found = await stand.driver.burst(requests, self._amounts.concurrency, seconds)
        router, others = (b - a for a, b in zip(before, _computed(stand), strict=True))
        return Rate(
            per_second=found.rate,
            router_us=router / found.requests * 1e6,
            busy=router / found.seconds,
            others=others / found.seconds,
        )

    def _tokenize(self) -> None:
        """What a router that knows all but the new text has to spend on it at least."""
        texts = {
            "new": [one.new for one in self._prompts.shared("220k", _TOKENIZED)],
            "novel": [one.new for one in self._prompts.novel("220k", _TOKENIZED)],
        }
        for name, some in texts.items():
            self.taken.tokenizing.setdefault(name, []).append(
                median([self._tokenizing(text) for text in some])
            )

    def _tokenizing(self, text: str) -> float:
        began = time.perf_counter()
        self._renderer.tokens(text)
        return time.perf_counter() - began

    def _requests(self, stand: Stand, kind: Kind, count: int) -> Iterator[bytes]:
        asked = self._prompts.shared(kind, count)
        return (one.request(stand.driver.base) for one in asked)

    async def _fleet(self, name: str, workers: int) -> tuple[Fleet, Child]:
        fleet = Fleet(name, workers, self._keys, self._places)
        return fleet, self._kept(await fleet.start())

    async def _stand(self, router: Kvferry | VllmRouter, workers: Child) -> Stand:
        return Stand(self._driver(router.base), workers, self._kept(await router.start()))

    def _driver(self, base: str) -> Driver:
        driver = Driver(base)
        self._stack.push_async_callback(driver.close)
        return driver

    def _kept(self, child: Child) -> Child:
        self.children.append(child)
        self._stack.push_async_callback(processes.stop, child, _STOP_SECONDS)
        return child

    def _shuffled(self, names: Iterable[str]) -> list[str]:
        every = list(names)
        return self._source.sample(every, len(every))


def _computed(stand: Stand) -> tuple[float, float]:
    """CPU seconds so far: of the router, and of workers and clients."""
    router = sum(processes.computed([stand.router]).values()) if stand.router else 0.0
    return router, sum(processes.computed([stand.workers]).values()) + time.process_time()


async def _calm(stand: Stand) -> bool:
    """Waits until its router has to do with its workers only what it always has."""
    end = time.monotonic() + _CALM_SECONDS
    while time.monotonic() < end:
        before = _computed(stand)[0]
        await asyncio.sleep(_SETTLE_SECONDS)
        if _computed(stand)[0] - before < _CALM_CORES * _SETTLE_SECONDS:
            return True
    return False


def _signal(stand: Stand, number: signal.Signals) -> None:
    for child in (stand.workers, stand.router):
        if child is not None:
            child.running.send_signal(number)
