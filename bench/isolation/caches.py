"""One tenant's prompts, one after the other, through caches that know tenants and such that do not.

Nothing is timed and nothing computed: all that counts is what is found. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bench.simulation.engine import Cache
from bench.simulation.prompts import Prompt


class Memory(Protocol):
    """A cache of blocks under which prompts go by."""

    def serve(self, prompt: Prompt) -> int:
        """How many of its first blocks are found; all of it that fits is kept then."""
        ...

    def close(self) -> None:
        """It is not needed any more."""
        ...


class PlainLru:
    """What is least recently used goes first, and all room is used. See Memory."""

    def __init__(self, blocks: int) -> None:
        self._cache = Cache(blocks)

    def serve(self, prompt: Prompt) -> int:
        """See Memory."""
        names = prompt.whole
        found = self._cache.prefix(names)
        self._cache.use(names)
        self._cache.free(sum(name not in self._cache for name in names))
        self._cache.store(names, "")
        return found

    def close(self) -> None:
        """See Memory."""


@dataclass(frozen=True)
class Hits:
    """Of all prompt tokens, those that were found: in ``ours``, in ``theirs``, which is ``called``
    so and knows no tenants, and in an ``ideal`` LRU, each with room for so many ``blocks``.
    """

    tier: Literal["gpu", "dram"]
    called: str
    blocks: int
    ours: float
    theirs: float
    ideal: float


Made = Callable[[int], Memory]


@dataclass(frozen=True)
class Tier:
    """Two memories of a tier, made with room for so many blocks."""

    name: Literal["gpu", "dram"]
    ours: Made
    theirs: Made
    called: str

    def hits(self, prompts: Sequence[Prompt], blocks: int) -> Hits:
        """What is found of ``prompts``."""
        ours, theirs, ideal = (
            hit_ratio(made(blocks), prompts) for made in (self.ours, self.theirs, PlainLru)
        )
        return Hits(self.name, self.called, blocks, ours, theirs, ideal)


def hit_ratio(memory: Memory, prompts: Sequence[Prompt]) -> float:
    """Tokens found, of all."""
    try:
        found = sum(prompt.held(memory.serve(prompt)) for prompt in prompts)
    finally:
        memory.close()
    return found / sum(prompt.tokens for prompt in prompts)
