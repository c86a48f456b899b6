"""What came of a replay, and what an infinite cache would have made of the same trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.simulation.prompts import Prompt
from bench.simulation.world import Served
from bench.statistics import percentile
from kvstore.curves import PrefillCurve


@dataclass(frozen=True)
class Oracle:
    """One cache that never forgets and that every worker shares. ``seconds``: of computing."""

    hit_ratio: float
    seconds: float


def oracle(prompts: Sequence[Prompt], curve: PrefillCurve) -> Oracle:
    """See Oracle."""
    held: set[bytes] = set()
    found, seconds = 0, 0.0
    for prompt in prompts:
        blocks = 0
        while blocks < len(prompt.whole) and prompt.whole[blocks] in held:
            blocks += 1
        held.update(prompt.whole)
        hit = prompt.held(blocks)
        found += hit
        seconds += curve.seconds(float(prompt.tokens - hit), float(hit))
    return Oracle(found / sum(prompt.tokens for prompt in prompts), seconds)


@dataclass(frozen=True)
class Outcome:
    """Every prompt of a replay over ``workers`` workers, of which there were ``restarts``."""

    served: Sequence[Served]
    workers: int
    restarts: int = 0

    @cached_property
    def hit_ratio(self) -> float:
        """Of all prompt tokens."""
        return sum(one.held for one in self.served) / sum(one.prompt.tokens for one in self.served)

    @property
    def cross_tenant_hits(self) -> int:
        """Tokens found that another tenant's prompt had left."""
        return sum(one.foreign for one in self.served)

    @property
    def imbalance(self) -> float:
        """Computing of the busiest worker over the mean."""
        computed = [0.0] * self.workers
        for one in self.served:
            computed[one.worker] += one.seconds
        return max(computed) * self.workers / sum(computed)

    @cached_property
    def ttfts(self) -> list[float]:
        """Seconds."""
        return sorted(one.ttft for one in self.served)

    def ttft(self, rank: float) -> float:
        """The ``rank`` percentile, seconds."""
        return percentile(self.ttfts, rank)

    def no_queue(self, rank: float) -> float:
        """The same where each of these requests, with what it found, had a worker to itself."""
        return percentile([one.seconds for one in self.served], rank)
