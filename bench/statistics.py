"""What a benchmark says with numbers: percentiles, medians, ratios taken within a round.

Two systems are compared by dividing their figures *within* a round, where both ran on the machine
in the same few minutes, and taking the median of those ratios over the rounds. Dividing figures
pooled over rounds would mix the machine's drift into the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def percentile(values: Sequence[float], rank: float) -> float:
    """The ``rank`` percentile (0 to 100), linear between neighbours. Raises ValueError if empty."""
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= rank <= 100:
        raise ValueError(f"a percentile is between 0 and 100, not {rank}")
    ordered = sorted(values)
    position = rank / 100 * (len(ordered) - 1)
    below = math.floor(position)
    above = math.ceil(position)
    share = position - below
    return ordered[below] * (1 - share) + ordered[above] * share


def median(values: Sequence[float]) -> float:
    """The 50th percentile. Raises ValueError if empty."""
    return percentile(values, 50)


def round_ratios(over: Mapping[int, float], under: Mapping[int, float]) -> dict[int, float]:
    """``over / under`` for every round both have. Raises ValueError on a divisor that is not > 0.

    A round that only one of them has (its system failed there) gives no ratio.
    """
    ratios: dict[int, float] = {}
    for number in sorted(over.keys() & under.keys()):
        if not under[number] > 0:
            raise ValueError(f"round {number}: cannot divide by {under[number]}")
        ratios[number] = over[number] / under[number]
    return ratios


def growth(samples: Sequence[tuple[float, float]], span: float, window: float) -> float:
    """How much a level rose over the last ``span`` seconds, as a fraction of where it began.

    ``samples``: (seconds, level) in order of time. Compared are the medians of the first and the
    last ``window`` seconds of the span, so that one odd sample decides nothing. Raises ValueError
    where the samples do not reach back that far or a window is empty.
    """
    if not samples or span < 2 * window:
        raise ValueError("a growth needs samples, and a span of two windows at least")
    end = samples[-1][0]
    if samples[0][0] > end - span + window:
        raise ValueError(f"the samples span {end - samples[0][0]:.0f} s, not {span:.0f} s")
    first = [level for at, level in samples if end - span <= at <= end - span + window]
    last = [level for at, level in samples if at >= end - window]
    start = median(first)
    if not start > 0:
        raise ValueError("a growth is relative to a level above zero")
    return median(last) / start - 1


def supports_percentile(count: int, rank: float) -> bool:
    """Whether ``count`` samples leave ten beyond the percentile, as a stable estimate wants."""
    return count * (100 - rank) / 100 >= 10
