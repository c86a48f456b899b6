"""Two samples compared by ranks, without any assumption of what is distributed how. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

_NORMAL = NormalDist()
_EXACT = 4000
"""Samples of both kinds up to which a Kolmogorov-Smirnov p is exact."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ks:
    """``distance``: how far the distribution of what should be smaller is above the other's."""

    distance: float
    p: float


def ks_less(smaller: Sequence[float], larger: Sequence[float]) -> Ks:
    """One-sided two-sample Kolmogorov-Smirnov: is ``smaller`` stochastically so?

    ``p`` is exact for samples without ties; with ties it is too large rather than too small.
    Raises ValueError if either is empty.
    """
    n, m = _sizes(smaller, larger)
    merged = np.sort(np.concatenate([smaller, larger]))
    ours = np.searchsorted(np.sort(smaller), merged, side="right")
    theirs = np.searchsorted(np.sort(larger), merged, side="right")
    # In whole numbers, n*m times the distance: no rounding decides what counts as extreme.
    lead = max(0, int((ours * m - theirs * n).max()))
    if lead == 0:
        return Ks(0.0, 1.0)
    if n + m > _EXACT:
        return Ks(lead / (n * m), math.exp(-2.0 * lead * lead / (n * m * (n + m))))
    return Ks(lead / (n * m), _tail(n, m, lead))


def _tail(n: int, m: int, lead: int) -> float:
    """The share of all orders of ``n`` and ``m`` samples whose lead is at least ``lead``.

    Orders are paths from (0, 0) to (n, m). Going through them column by column, of those that have
    not reached the lead yet the share that each of the next steps leads to is kept.
    """
    j = np.arange(m + 1)
    alive: Floats = np.zeros(m + 1)
    alive[0] = 1.0
    reached = 0.0
    # alive[j] is the probability of being at (i, j) without having had the lead; a step towards
    # (i + 1, j) has the probability (n - i) / (n + m - i - j), as in drawing without putting back.
    for diagonal in range(n + m):
        i = diagonal - j
        there = (i >= 0) & (i <= n)
        left = n + m - diagonal
        up = np.where(there, (m - j) / left, 0.0) * alive
        across = np.where(there, (n - i) / left, 0.0) * alive
        alive = across.copy()  # to (i + 1, j), which keeps its place in the array
        alive[1:] += up[:-1]
        over = (diagonal + 1 - j) * m - j * n >= lead
        reached += float(alive[over].sum())
        alive[over] = 0.0
    return min(1.0, reached)


def auc(smaller: Sequence[float], larger: Sequence[float], confidence: float) -> Interval:
    """The probability that one of ``smaller`` is below one of ``larger``; ties count half.

    The interval is DeLong's, from the variance of each sample's placements; no narrower than the
    one that equal distributions would have. Raises ValueError if either is empty.
    """
    n, m = _sizes(smaller, larger)
    ours = _placements(smaller, larger)
    theirs = 1 - _placements(larger, smaller)
    value = float(ours.mean())
    null = (n + m + 1) / (12 * n * m)
    variance = _variance(ours) / n + _variance(theirs) / m
    spread = math.sqrt(max(variance, null)) * _NORMAL.inv_cdf(0.5 + confidence / 2)
    return Interval(value, max(0.0, value - spread), min(1.0, value + spread))


def _placements(of: Sequence[float], among: Sequence[float]) -> Floats:
    """For each value the share of the others that lie above it; ties count half."""
    ordered = np.sort(np.asarray(among, dtype=np.float64))
    below = np.searchsorted(ordered, of, side="left")
    through = np.searchsorted(ordered, of, side="right")
    return 1.0 - (below + through) / (2 * len(ordered))


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.25


def shift(smaller: Sequence[float], larger: Sequence[float], confidence: float) -> Interval:
    """How much ``larger`` lies above ``smaller``: Hodges and Lehmann's median of all differences.

    The interval is Moses's, by the normal approximation. Raises ValueError if either is empty.
    """
    n, m = _sizes(smaller, larger)
    pairs = np.subtract.outer(
        np.asarray(larger, dtype=np.float64), np.asarray(smaller, dtype=np.float64)
    )
    differences = np.sort(pairs.ravel())
    spread = _NORMAL.inv_cdf(0.5 + confidence / 2) * math.sqrt(n * m * (n + m + 1) / 12)
    skipped = max(0, math.floor(n * m / 2 - spread))
    return Interval(
        float(np.median(differences)),
        float(differences[skipped]),
        float(differences[len(differences) - 1 - skipped]),
    )


def _sizes(first: Sequence[float], second: Sequence[float]) -> tuple[int, int]:
    if not len(first) or not len(second):
        raise ValueError("two samples are compared, and one is empty")
    return len(first), len(second)
