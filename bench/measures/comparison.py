"""Is B slower than A, or is it noise?

Two systems run in pairs, A and B close together in time, so that the machine's drift hits both.
A pair gives one ratio of medians; requests of one run are correlated and are not resampled. The
interval is a percentile bootstrap over pairs of the mean log ratio, with the percentiles widened
for small samples (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015), and no
narrower than Student's: a plain percentile interval of ten pairs is too narrow, and the widened one
still was for noise that simulations made. Fewer than eight pairs are too few for any.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RESAMPLES = 10_000
FEWEST_PAIRS = 8
MANY_DEGREES = 500

Better = Literal["lower", "higher"]
Finding = Literal["better", "worse", "no difference found"]


@dataclass(frozen=True)
class Comparison:
    """``ratio`` is B over A, with its interval. ``confidence``: of the interval, 0 to 1."""

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int

    def finding(self, better: Better = "lower") -> Finding:
        """What the interval shows of B, where ``better`` says which way A's figure improves."""
        if self.low <= 1 <= self.high:
            return "no difference found"
        return "better" if (self.high < 1) == (better == "lower") else "worse"


def compare(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Figures of A and B, pair by pair, all above zero and finite. Raises ValueError."""
    if len(a) != len(b) or len(a) < FEWEST_PAIRS:
        raise ValueError(f"{FEWEST_PAIRS} pairs at least, and as many of A as of B")
    if not all(0 < figure < math.inf for figure in (*a, *b)):
        raise ValueError("a ratio is of finite figures above zero")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is between 0 and 1, not {confidence:g}")
    logs = [math.log(of_b) - math.log(of_a) for of_a, of_b in zip(a, b, strict=True)]
    source = random.Random(seed)
    count = len(logs)
    means = sorted(math.fsum(source.choices(logs, k=count)) / count for _ in range(RESAMPLES))
    tail = widened_tail(count, confidence)
    middle = math.fsum(logs) / count
    reach = student_quantile((1 + confidence) / 2, count - 1) * statistics.stdev(logs)
    reach /= math.sqrt(count)
    low = min(means[max(0, math.floor(tail * RESAMPLES))], middle - reach)
    high = max(means[min(RESAMPLES - 1, math.ceil((1 - tail) * RESAMPLES) - 1)], middle + reach)
    return Comparison(math.exp(middle), math.exp(low), math.exp(high), confidence, count)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of one figure a round, and its interval's ends (Student's). Raises ValueError."""
    if len(values) < FEWEST_PAIRS:
        raise ValueError(f"{FEWEST_PAIRS} rounds at least")
    middle = math.fsum(values) / len(values)
    reach = student_quantile((1 + confidence) / 2, len(values) - 1) * statistics.stdev(values)
    reach /= math.sqrt(len(values))
    return middle, middle - reach, middle + reach


def widened_tail(count: int, confidence: float) -> float:
    """The percentile to read, instead of ``(1 - confidence) / 2``, from ``count`` samples."""
    t = student_quantile(1 - (1 - confidence) / 2, count - 1)
    return statistics.NormalDist().cdf(-math.sqrt(count / (count - 1)) * t)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, by bisection of its distribution function.

    The function's series has a term for every two degrees of freedom; where they are many, t is
    so near to normal that the first two terms of its expansion tell it to seven digits.
    """
    if freedom > MANY_DEGREES:
        z = statistics.NormalDist().inv_cdf(probability)
        first, second = z**3 + z, 5 * z**5 + 16 * z**3 + 3 * z
        return z + first / (4 * freedom) + second / (96 * freedom**2)
    low, high = -1000.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        if _student_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_cdf(t: float, freedom: int) -> float:
    """The finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(theta), math.sin(theta)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    start = 3 if freedom % 2 else 2
    for k in range(start, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if freedom == 1:
        return 0.5 + theta / math.pi
    if freedom % 2:
        return 0.5 + (theta + sine * total) / math.pi
    return 0.5 + sine * total / 2
