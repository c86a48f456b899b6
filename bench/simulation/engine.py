"""A prefill engine that computes nothing but keeps vLLM's books: steps, prompts, cached blocks.

Blocks for a prompt are taken from those least recently used, the end of a prompt goes before its
beginning, and a block is found once the step that computed it is over.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.load.traces import MOONCAKE_BLOCK
from bench.simulation.prompts import Prompt


class Cache:
    """Keeps ``capacity`` blocks by name, and who stored each."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: bytes) -> bool:
        return name in self._blocks

    def owner(self, name: bytes) -> str:
        """Whose prompt it was computed for."""
        return self._blocks[name]

    def prefix(self, names: Sequence[bytes]) -> int:
        """How many of the first are held."""
        found = 0
        for name in names:
            if name not in self._blocks:
                break
            found += 1
        return found

    def use(self, names: Sequence[bytes]) -> None:
        """Those that are held go last from now on, the first of them last of all."""
        for name in reversed(names):
            if name in self._blocks:
                self._blocks.move_to_end(name)

    def free(self, room: int) -> list[bytes]:
        """Makes room for so many more; what went for it."""
        gone = []
        while self._blocks and len(self._blocks) + room > self._capacity:
            gone.append(self._blocks.popitem(last=False)[0])
        return gone

    def store(self, names: Iterable[bytes], owner: str) -> list[bytes]:
        """Puts in what is not there yet; what is new."""
        new = [name for name in names if name not in self._blocks]
        for name in reversed(new):
            self._blocks[name] = owner
        return new

    def clear(self) -> None:
        """Forgets all."""
        self._blocks.clear()


@dataclass
class Progress:
    """A prompt in the engine. ``held`` tokens were there when its computing began, ``foreign`` of
    them by another tenant's prompt; ``done`` tokens are there now. ``seconds``: spent on it, which
    are ``factor`` times as many as usual.
    """

    prompt: Prompt
    factor: float
    held: int = 0
    foreign: int = 0
    done: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """Tokens to compute."""
        return self.prompt.tokens - self.done


@dataclass(frozen=True)
class Chunk:
    """``tokens`` of a prompt that a step computes; the ``first`` of it, or a later one."""

    progress: Progress
    tokens: int
    first: bool


class Engine:
    """Prompts in the order of their coming, computed step by step as vLLM's scheduler does it.

    A step has ``step_tokens`` (vLLM's ``max_num_batched_tokens``).
    """

    def __init__(self, capacity: int, step_tokens: int, factor: Callable[[], float]) -> None:
        """``factor``: drawn for each prompt, see Progress."""
        self._factor = factor
        self.cache = Cache(capacity)
        self._step_tokens = step_tokens
        self._waiting: deque[Prompt] = deque()
        self._running: list[Progress] = []
        self._step: list[Chunk] = []

    @property
    def idle(self) -> bool:
        """Whether no step is under way."""
        return not self._step

    def take(self, prompt: Prompt) -> None:
        """Puts it behind all others."""
        self._waiting.append(prompt)

    def begin(self) -> tuple[list[Chunk], list[bytes]]:
        """The next step: what it computes, and the blocks that had to be forgotten for it."""
        assert self.idle
        budget, evicted = self._step_tokens, list[bytes]()
        for progress in self._running:
            if budget:
                tokens = min(progress.left, budget)
                budget -= tokens
                self._step.append(Chunk(progress, tokens, first=False))
        while budget and self._waiting:
            progress = Progress(self._waiting.popleft(), self._factor())
            evicted += self._admit(progress)
            self._running.append(progress)
            tokens = min(progress.left, budget)
            budget -= tokens
            self._step.append(Chunk(progress, tokens, first=True))
        return self._step, evicted

    def end(self) -> tuple[list[Progress], list[bytes]]:
        """The step is over: which prompts are through, and which blocks are held from now on."""
        new: list[bytes] = []
        for chunk in self._step:
            progress, prompt = chunk.progress, chunk.progress.prompt
            progress.done += chunk.tokens
            computed = prompt.whole[: progress.done // MOONCAKE_BLOCK]
            new += self.cache.store(computed, prompt.tenant)
        through = [one for one in self._running if not one.left]
        for progress in through:
            self.cache.use(progress.prompt.whole)
        self._running = [one for one in self._running if one.left]
        self._step = []
        return through, new

    def crash(self) -> list[Prompt]:
        """All is lost; the prompts that it had been given."""
        lost = [one.prompt for one in self._running] + list(self._waiting)
        self._running, self._step = [], []
        self._waiting.clear()
        self.cache.clear()
        return lost

    def _admit(self, progress: Progress) -> list[bytes]:
        """Finds what is held of it and takes room for the rest; what had to go for that."""
        prompt = progress.prompt
        blocks = self.cache.prefix(prompt.whole)
        found = prompt.whole[:blocks]
        foreign = sum(self.cache.owner(name) != prompt.tenant for name in found)
        progress.held = progress.done = prompt.held(blocks)
        progress.foreign = foreign * MOONCAKE_BLOCK
        self.cache.use(prompt.whole)
        return self.cache.free(len(prompt.names) - blocks)
