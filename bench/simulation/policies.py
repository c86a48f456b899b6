"""Who computes a prompt, by rules that others use. All of them know exactly what engines hold."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import xxhash

from bench.simulation.prompts import Prompt
from kvstore.curves import PrefillCurve

POINTS = 128
"""Of each worker on a consistent hash's ring."""


@dataclass(frozen=True)
class Seen:
    """A worker as it is: seconds of work before it, tokens of the prompt that it holds."""

    wait: float
    held: int


class Rule(Protocol):
    """Chooses at once, when a request arrives."""

    def choose(self, prompt: Prompt, seen: Sequence[Seen]) -> int:
        """The worker's position; ``seen`` has one for each."""
        ...


class RoundRobin:
    """In turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, _prompt: Prompt, seen: Sequence[Seen]) -> int:
        """See Rule."""
        chosen, self._next = self._next % len(seen), self._next + 1
        return chosen


class ConsistentHash:
    """By session: the tenant and the prompt's beginning, on a ring."""

    def __init__(self, workers: int) -> None:
        self._ring = sorted(
            (xxhash.xxh3_64_intdigest(b"%d/%d" % (worker, point)), worker)
            for worker in range(workers)
            for point in range(POINTS)
        )

    def choose(self, prompt: Prompt, seen: Sequence[Seen]) -> int:
        """See Rule."""
        key = xxhash.xxh3_64_intdigest(b"".join(prompt.names[:2]))
        at = bisect.bisect(self._ring, (key, 0)) % len(self._ring)
        return self._ring[at][1]


class GreedyPrefix:
    """Who holds most, unless much more waits there than with another; among equals, who is free
    first.
    """

    def __init__(self, guard: float) -> None:
        self._guard = guard

    def choose(self, _prompt: Prompt, seen: Sequence[Seen]) -> int:
        """See Rule."""
        limit = min(one.wait for one in seen) + self._guard
        fair = (at for at, one in enumerate(seen) if one.wait <= limit)
        return min(fair, key=lambda at: (-seen[at].held, seen[at].wait))


class LeastWork:
    """Who will have done with it first."""

    def __init__(self, curve: PrefillCurve) -> None:
        self._curve = curve

    def choose(self, prompt: Prompt, seen: Sequence[Seen]) -> int:
        """See Rule."""
        return min(
            range(len(seen)),
            key=lambda at: (
                seen[at].wait
                + self._curve.seconds(float(prompt.tokens - seen[at].held), float(seen[at].held))
            ),
        )
