"""Scales of a plot: from a value to a share of the axis, and ticks at 1, 2 and 5.

Any finite values will do: none, one, all alike, near the ends of what a float holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LARGEST = 1e300
"""Values are cut to this, so that a difference of two never overflows."""
SMALLEST = 1e-300
"""What is closer to zero is drawn as zero, so that no step ever underflows."""
STEPS = 5
"""About as many between the ticks of a linear axis."""
ALIKE = 1e-9
"""Values that differ by less, relative to their size, are drawn as one."""


@dataclass(frozen=True, slots=True)
class Axis:
    """``low`` < ``high``, both above zero where ``log``; ``ticks``: values and their labels."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where the value lies, 0 at ``low`` and 1 at ``high``; what lies outside is cut."""
        if value <= self.low:
            return 0.0
        if value >= self.high:
            return 1.0
        if self.log:
            below = math.log(self.low)
            return (math.log(value) - below) / (math.log(self.high) - below)
        return (value - self.low) / (self.high - self.low)


def linear_axis(
    values: Iterable[float], *, from_zero: bool = False, snug: bool = False, whole: bool = False
) -> Axis:
    """An axis over the values. ``snug``: it ends where they end; ``whole``: they are counts."""
    low, high = _extent(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = _widened(low, high)
    step = _step((high - low) / STEPS)
    if whole:
        step = max(step, 1.0)
    if not snug:
        low = math.floor(low / step + ALIKE) * step
        high = math.ceil(high / step - ALIKE) * step
    first, last = math.ceil(low / step - ALIKE), math.floor(high / step + ALIKE)
    ticks = tuple((i * step, tick_label(i * step, step)) for i in range(first, last + 1))
    return Axis(low, high, ticks)


def log_axis(values: Iterable[float]) -> Axis:
    """A logarithmic axis, snug; a linear one where a value is not above zero."""
    kept = list(values)
    low, high = _extent(kept)
    if not kept or low < SMALLEST:
        return linear_axis(kept, snug=True)
    if high - low <= high * ALIKE:
        low, high = max(low / 2, SMALLEST), min(high * 2, LARGEST)
    ticks = _log_ticks(low, high)
    if len(ticks) < 2:  # less than a 1-2-5 step wide: nobody would see that it is logarithmic
        return linear_axis(kept, snug=True)
    return Axis(low, high, ticks, log=True)


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    stride = max(1, math.ceil((last - first) / 7))
    candidates = (
        factor * 10.0**exponent for exponent in range(first, last + 1, stride) for factor in factors
    )
    inside = (at for at in candidates if low * (1 - ALIKE) <= at <= high * (1 + ALIKE))
    return tuple((at, tick_label(at, at)) for at in inside)


def tick_label(value: float, step: float) -> str:
    """A short number, with the decimals that tell it from its neighbours a ``step`` away."""
    size = max(abs(value), abs(step))
    if size >= 1e12 or abs(step) < 1e-4:
        return f"{value:.3g}".replace("e+", "e").replace("e0", "e") if value else "0"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= max(unit, 1e4):
            return f"{_rounded(value / unit, step / unit)}{letter}" if value else "0"
    return _rounded(value, step)


def _rounded(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(abs(step)) + ALIKE))
    return f"{value + 0.0:,.{decimals}f}"


def _extent(values: Iterable[float]) -> tuple[float, float]:
    kept = [
        0.0 if abs(value) < SMALLEST else min(max(value, -LARGEST), LARGEST)
        for value in values
        if math.isfinite(value)
    ]
    return (min(kept), max(kept)) if kept else (0.0, 1.0)


def _widened(low: float, high: float) -> tuple[float, float]:
    size = max(abs(low), abs(high))
    if size == 0:
        return 0.0, 1.0
    if high - low > size * ALIKE:
        return low, high
    return max(low - size / 2, -LARGEST), min(high + size / 2, LARGEST)


def _step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - ALIKE))
