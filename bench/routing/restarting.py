"""Rounds: the proxy is killed while clients go on asking, and another one steers as well again."""

from __future__ import annotations

import asyncio
import random
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench import processes
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from bench.noise import CpuWatch
from bench.processes import Child
from bench.routing.conversations import Conversations
from bench.routing.prompts import PATH
from bench.routing.settings import TENANTS, Places, RestartAmounts, RoutingFailed, cores
from bench.routing.systems import MODEL, Fleet, Kvferry
from bench.routing.tally import TALLY, Counts
from bench.routing.windows import seconds_until, window

BACK = 0.95
"""Of its hit ratio before, that a proxy is to have again."""

_REQUEST_SECONDS = 10.0
_SAMPLE_SECONDS = 0.25
_AGAIN_SECONDS = 0.1
"""After which a client that was refused asks again."""
_REPLAY_SECONDS = 30.0
_STOP_SECONDS = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Round:
    """One kill. Hit ratios ``before`` it, and from the first worker's replay on ``after`` it;
    ``blind``: of workers chosen at random, all the time. Seconds from the kill to the first
    ``replay`` and to the first ``answer``, and from the replay until the ratio was ``back``: None
    where it was not as long as that was looked at.
    """

    before: float
    after: float
    blind: float
    replay: float
    answer: float
    back: float | None


@dataclass
class Restarts:
    """``answered`` and ``refused``: requests, of clients; ``others``: cores, of strangers.
    ``samples``: by round, of the workers' tally, in seconds from the first replay on.
    """

    rounds: list[Round] = field(default_factory=list)
    samples: list[list[Counts]] = field(default_factory=list)
    answered: int = 0
    refused: int = 0
    others: float = 0.0


async def measure(amounts: RestartAmounts, model: Path, say: Say) -> Restarts:
    """All rounds. Raises StartFailed, RoutingFailed."""
    # Sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="kvf-s-") as folder:
        async with AsyncExitStack() as stack:
            scene = Scene(stack, amounts, Places(Path(folder), model, cores()))
            await scene.open()
            say(f"{amounts.clients} clients ask; what is held settles for {amounts.warm:g} s")
            await scene.during(amounts.warm)
            watch = CpuWatch(scene.children)
            for number in range(amounts.rounds):
                found = await scene.round()
                back = "not back" if found.back is None else f"back after {found.back:.1f} s"
                say(f"round {number + 1} of {amounts.rounds}: {found.before:.3f}, {back}")
            scene.taken.others = watch.others()
            return scene.taken


class Scene:
    """A fleet, its proxy, and clients that ask as long as ``stack`` is not left."""

    def __init__(self, stack: AsyncExitStack, amounts: RestartAmounts, places: Places) -> None:
        self.taken = Restarts()
        self._stack = stack
        self._amounts = amounts
        self._dice = random.Random(amounts.seed)
        keys = [secrets.token_urlsafe(24) for _ in range(TENANTS)]
        options = ("--computes", "--blocks", str(amounts.blocks))
        self._fleet = Fleet("few", amounts.workers, keys, places, options)
        self._proxy = Kvferry(self._fleet)
        self._talks = Conversations(MODEL, keys, amounts)
        self._samples: list[Counts] = []
        self._answers: list[tuple[float, float]] = []
        self._children: dict[str, Child] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def children(self) -> list[Child]:
        """That run now."""
        return list(self._children.values())

    async def open(self) -> None:
        """Starts everything; clients begin to ask."""
        self._stack.push_async_callback(self._stop)
        self._children["workers"] = await self._fleet.start()
        self._children["proxy"] = await self._proxy.start()
        client = await self._stack.enter_async_context(Client(_REQUEST_SECONDS))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(client))]
        for _ in range(self._amounts.clients):
            self._tasks.append(loop.create_task(self._talk(client)))

    async def during(self, seconds: float) -> None:
        """Nothing but what goes on. Raises what ends a client or the watching of workers."""
        done, _ = await asyncio.wait(
            self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()

    async def round(self) -> Round:
        """Raises StartFailed, RoutingFailed."""
        amounts = self._amounts
        began = time.monotonic()
        await self.during(amounts.before)
        known = set(self._samples[-1].replays)
        killed = time.monotonic()
        await self._restart()
        replay = await self._replayed(known)
        await self.during(replay + amounts.after + _SAMPLE_SECONDS - time.monotonic())
        before = window(self._samples, began, killed)
        after = window(self._samples, replay, replay + amounts.after)
        whole = window(self._samples, began, replay + amounts.after)
        if before is None or after is None or whole is None:
            raise RoutingFailed("the workers told too little of what they computed")
        back = seconds_until(self._samples, replay, amounts.window, BACK * before.ratio)
        answers = [finished for sent, finished in self._answers if sent > killed]
        found = Round(
            before=before.ratio,
            after=after.ratio,
            blind=whole.blind,
            replay=replay - killed,
            answer=min(answers, default=time.monotonic()) - killed,
            back=back,
        )
        self.taken.rounds.append(found)
        self.taken.samples.append(
            [msgspec.structs.replace(one, at=one.at - replay) for one in self._samples]
        )
        del self._samples[:-1], self._answers[:]
        return found

    async def _restart(self) -> None:
        """The proxy is gone at once, and another one takes its place."""
        child = self._children.pop("proxy")
        for member in child.family():
            processes.kill(member)
        child.running.wait()
        self._children["proxy"] = await self._proxy.start()

    async def _replayed(self, known: set[str]) -> float:
        """When a proxy that is not ``known`` was sent the first snapshot."""
        end = time.monotonic() + _REPLAY_SECONDS
        while time.monotonic() < end:
            if new := self._samples[-1].replays.keys() - known:
                return min(self._samples[-1].replays[one] for one in new)
            await self.during(_SAMPLE_SECONDS)
        raise RoutingFailed("no worker told the new proxy what it holds")

    async def _watch(self, client: Client) -> None:
        """Samples what the workers tell; the oldest go when a round is over."""
        at = Endpoint(f"http://{self._fleet.bases('prefill')[0]}", {})
        while True:
            try:
                told = await client.text(at, TALLY)
            except RequestFailed as error:
                raise RoutingFailed(f"the workers do not tell: {error}") from None
            self._samples.append(msgspec.json.decode(told, type=Counts))
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _talk(self, client: Client) -> None:
        """One client."""
        while True:
            await asyncio.sleep(self._dice.expovariate(1000 / self._amounts.think_ms))
            taken = self._talks.take()
            headers = {"authorization": f"Bearer {taken.key}"}
            at, body = Endpoint(f"http://{self._proxy.base}", headers), self._talks.body(taken)
            while (told := await client.send(at, PATH, body, time.monotonic())).error:
                self.taken.refused += 1
                await asyncio.sleep(_AGAIN_SECONDS)
            self.taken.answered += 1
            self._answers.append((told.sent, told.finished))
            self._talks.answered(taken)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for child in self.children:
            await processes.stop(child, _STOP_SECONDS)
