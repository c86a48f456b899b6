"""Ways of moving the same bytes, timed in turns, and the ratio of two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.measures.comparison import Comparison, compare
from bench.statistics import median

_WARM_UPS = 3


@dataclass(frozen=True)
class Figure:
    """One way beside another. Speeds are GB/s (10^9 bytes), of one direction, medians of rounds.

    ``bound``: what the ratio of the speeds must reach with its interval's lower end; None: shown
    for information. ``missing``: why it could not be measured; then there is no ratio.
    """

    name: str
    bound: float | None
    speed: float = 0.0
    beside: float = 0.0
    ratio: Comparison | None = None
    missing: str = ""

    @property
    def kept(self) -> bool | None:
        """Whether the bound is kept; None where there is none, or no figure."""
        if self.bound is None or self.ratio is None:
            return None
        return self.ratio.low >= self.bound


def speeds(
    ways: Mapping[str, Callable[[], None]], size: int, rounds: int
) -> dict[str, list[float]]:
    """GB/s of every way in every round. A way returns when its ``size`` bytes have moved.

    Every round takes all ways, each time in another order.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_WARM_UPS):
        for way in ways.values():
            way()
    names = list(ways)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            ways[name]()
            found[name].append(size / (time.perf_counter() - began) / 1e9)
    return found


def figure(
    name: str, bound: float | None, measured: Sequence[float], beside: Sequence[float]
) -> Figure:
    """``measured`` over ``beside``, round by round."""
    ratio = compare(beside, measured)
    return Figure(name, bound, median(measured), median(beside), ratio)
