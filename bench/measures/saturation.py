"""Whether a server takes in less than it is asked: then waiting longer only makes it worse.

Both the requests under way and the TTFT have to grow over time, each with a slope whose one-sided
95 % interval lies above zero, and by more than a trifle.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bench.measures.comparison import student_quantile

LEAST_SECONDS = 30.0
LEAST_SAMPLES = 20
GROWTH = 1.5
"""How many times as large the fitted end has to be as the fitted beginning."""

Series = Sequence[tuple[float, float]]
"""(seconds, value), in order of time."""


def saturated(in_flight: Series, ttft: Series) -> bool:
    """Whether both series grow without an end in sight."""
    return grows(in_flight) and grows(ttft)


def grows(series: Series) -> bool:
    """Whether ``series`` is long enough and surely rises."""
    if len(series) < LEAST_SAMPLES or series[-1][0] - series[0][0] < LEAST_SECONDS:
        return False
    times = [at for at, _ in series]
    values = [value for _, value in series]
    slope, intercept = statistics.linear_regression(times, values)
    spread = math.fsum((at - statistics.fmean(times)) ** 2 for at in times)
    residual = math.fsum(
        (value - slope * at - intercept) ** 2 for at, value in zip(times, values, strict=True)
    )
    error = math.sqrt(residual / (len(series) - 2) / spread)
    begin, end = slope * times[0] + intercept, slope * times[-1] + intercept
    surely = slope - student_quantile(0.95, len(series) - 2) * error > 0
    return surely and end > GROWTH * max(begin, statistics.fmean(values) / 10)
