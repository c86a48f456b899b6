"""What a figure is held to, and whether it was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.measures.comparison import FEWEST_PAIRS, compare
from bench.statistics import median


@dataclass(frozen=True)
class Bound:
    """What a metric is held to."""

    metric: str
    kind: Literal["at most", "at least"]
    limit: float

    def kept(self, value: float) -> bool:
        """Whether it was."""
        return value <= self.limit if self.kind == "at most" else value >= self.limit


@dataclass(frozen=True)
class Judgement:
    """A bound and what was measured. ``low`` and ``high``: None where there is no interval."""

    bound: Bound
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def outcome(self) -> Literal["kept", "short"]:
        """By the worse end."""
        worse = self.high if self.bound.kind == "at most" else self.low
        return "kept" if self.bound.kept(self.value if worse is None else worse) else "short"

    def metrics(self) -> dict[str, float]:
        """By name; ``_low`` and ``_high`` are the interval's ends."""
        ends = (("", self.value), ("_low", self.low), ("_high", self.high))
        return {f"{self.bound.metric}{end}": at for end, at in ends if at is not None}


def in_words(short: Sequence[str]) -> str:
    """What a verdict says first; ``short``: metrics whose bounds were not kept."""
    return f"SHORT of its bounds: {', '.join(short)}." if short else "Within its bounds."


def judged_ratio(bound: Bound, under: Sequence[float], over: Sequence[float]) -> Judgement:
    """``over / under``, round by round; with an interval where the rounds are enough for one."""
    if len(over) < FEWEST_PAIRS:
        return Judgement(bound, median([a / b for a, b in zip(over, under, strict=True)]))
    found = compare(under, over)
    return Judgement(bound, found.ratio, found.low, found.high)
