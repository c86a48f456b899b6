"""Events in their order: prompts come, are sent, computed and answered. Time is a number."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.simulation.engine import Chunk, Engine, Progress
from bench.simulation.prompts import Prompt
from kvstore.curves import PrefillCurve

SEND_SECONDS = 0.001
"""From the proxy to a worker, and back."""

RESTART_SECONDS = 20.0


@dataclass(frozen=True)
class Settings:
    """``workers`` engines of ``blocks`` blocks each, as fast as ``curve`` says, give or take
    ``spread`` (standard deviation of the logarithm, drawn for each prompt). ``stretch`` multiplies
    the trace's times; None: engines take no time at all. Every ``restart_every`` seconds one loses
    all it holds and is away for ``restart_seconds``. A step has ``step_tokens``.
    """

    workers: int
    blocks: int
    curve: PrefillCurve
    spread: float = 0.0
    stretch: float | None = 1.0
    seed: int = 0
    step_tokens: int = 8192
    restart_every: float | None = None
    restart_seconds: float = RESTART_SECONDS


@dataclass(frozen=True)
class Served:
    """A prompt that has been computed. ``seconds``: the computing alone; ``ttft`` from arrival."""

    prompt: Prompt
    worker: int
    held: int
    foreign: int
    seconds: float
    ttft: float


class Steering(Protocol):
    """Sends prompts to workers, knowing what a proxy can know."""

    def arrived(self, prompt: Prompt) -> None:
        """A client's request is here."""
        ...

    def forgot(self, worker: int, evicted: Sequence[bytes]) -> None:
        """The engine needed room."""
        ...

    def stored(self, worker: int, new: Sequence[bytes]) -> None:
        """The engine holds these blocks, too."""
        ...

    def answered(self, worker: int, prompt: Prompt) -> None:
        """The worker's answer is here."""
        ...

    def failed(self, worker: int, prompt: Prompt) -> None:
        """The worker went before it had computed the prompt, or was away when it came."""
        ...

    def went(self, worker: int) -> None:
        """The worker is gone, and holds nothing any more."""
        ...

    def returned(self, worker: int) -> None:
        """It is back."""
        ...


@dataclass
class World:
    """Runs once, over all of ``prompts``."""

    settings: Settings
    prompts: Sequence[Prompt]
    now: float = 0.0
    served: list[Served] = field(default_factory=list)
    restarts: int = 0

    def __post_init__(self) -> None:
        count = self.settings.workers
        self._noise = random.Random(self.settings.seed)
        self.engines = [
            Engine(self.settings.blocks, self.settings.step_tokens, self._factor)
            for _ in range(count)
        ]
        self._away: set[int] = set()
        self._lives = [0] * count
        self._arrived: dict[int, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._left = len(self.prompts)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """``act`` after so many seconds; what was said first happens first."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), act))

    def run(self, steering: Steering) -> list[Served]:
        """Until every prompt has been served."""
        self._steering = steering
        stretch = self.settings.stretch
        for prompt in self.prompts:
            self.later(prompt.at * (1.0 if stretch is None else stretch), self._arrival(prompt))
        if self.settings.restart_every is not None:
            self.later(self.settings.restart_every, lambda: self._restart(0))
        while self._left:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.served

    def send(self, prompt: Prompt, worker: int) -> None:
        """The prompt is on its way to the worker."""
        self.later(self._delay, lambda: self._received(prompt, worker))

    def arrived_at(self, prompt: Prompt) -> float:
        """When its request came."""
        return self._arrived[prompt.number]

    @property
    def _delay(self) -> float:
        return 0.0 if self.settings.stretch is None else SEND_SECONDS

    def _arrival(self, prompt: Prompt) -> Callable[[], None]:
        def arrive() -> None:
            self._arrived[prompt.number] = self.now
            self._steering.arrived(prompt)

        return arrive

    def _factor(self) -> float:
        return self._noise.lognormvariate(0.0, self.settings.spread)

    def _received(self, prompt: Prompt, worker: int) -> None:
        if worker in self._away:
            self._fail(worker, prompt)
            return
        self.engines[worker].take(prompt)
        self._step(worker)

    def _step(self, worker: int) -> None:
        engine = self.engines[worker]
        if not engine.idle:
            return
        chunks, evicted = engine.begin()
        if evicted:
            self._steering.forgot(worker, evicted)
        if chunks:
            life = self._lives[worker]
            self.later(sum(map(self._seconds, chunks)), lambda: self._stepped(worker, life))

    def _seconds(self, chunk: Chunk) -> float:
        """How long the chunk takes; noted on its prompt."""
        progress, curve = chunk.progress, self.settings.curve
        right = curve.seconds(float(chunk.tokens), float(progress.done))
        if not chunk.first:
            right -= curve.start
        seconds = right * progress.factor
        progress.seconds += seconds
        return 0.0 if self.settings.stretch is None else seconds

    def _stepped(self, worker: int, life: int) -> None:
        if life != self._lives[worker]:
            return
        through, new = self.engines[worker].end()
        if new:
            self._steering.stored(worker, new)
        for progress in through:
            self._served(worker, progress)
        self._step(worker)

    def _served(self, worker: int, progress: Progress) -> None:
        prompt = progress.prompt
        ttft = self.now + self._delay - self._arrived[prompt.number]
        self.served.append(
            Served(prompt, worker, progress.held, progress.foreign, progress.seconds, ttft)
        )
        self._left -= 1
        self.later(self._delay, lambda: self._steering.answered(worker, prompt))

    def _restart(self, worker: int) -> None:
        assert self.settings.restart_every is not None
        self._lives[worker] += 1
        self.restarts += 1
        self._away.add(worker)
        self._steering.went(worker)
        for prompt in self.engines[worker].crash():
            self._fail(worker, prompt)
        self.later(self.settings.restart_seconds, lambda: self._return(worker))
        after = (worker + 1) % self.settings.workers
        self.later(self.settings.restart_every, lambda: self._restart(after))

    def _return(self, worker: int) -> None:
        self._away.remove(worker)
        self._steering.returned(worker)

    def _fail(self, worker: int, prompt: Prompt) -> None:
        self.later(self._delay, lambda: self._steering.failed(worker, prompt))
