"""Whether a server takes in less than it is asked: then waiting longer only makes it worse.

Both the requests under way and the TTFT have to grow over time, each with a slope whose one-sided
95 % interval lies above zero, and by more than a trifle. But the samples of a queue hang together:
one that keeps up wanders for a minute and looks like growth to a regression. So the requests under
way have to grow by more than they would wander if arrivals and departures came purely by chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bench.measures.comparison import student_quantile

LEAST_SECONDS = 30.0
LEAST_SAMPLES = 20
SHORTEST = 0.1
GROWTH = 1.5
"""How many times as large the fitted end has to be as the fitted beginning."""

WANDER = 1.5
"""Standard deviations of a random walk that steps up for an arrival and down for a departure."""

Series = Sequence[tuple[float, float]]
"""(seconds, value), in order of time."""


def saturated(in_flight: Series, ttft: Series) -> bool:
    """Whether both series grow without an end in sight.

    ``in_flight`` has to be ``LEAST_SECONDS`` long. ``ttft``, of every answered request, may be
    shorter: the more a server is behind, the earlier were those asked that it has answered.
    """
    if len(in_flight) < LEAST_SAMPLES or in_flight[-1][0] - in_flight[0][0] < LEAST_SECONDS:
        return False
    return piles_up(in_flight, len(ttft)) and grows(in_flight) and grows(ttft)


def piles_up(in_flight: Series, answered: int) -> bool:
    """Whether more is under way at the end than in the middle, and more than by chance.

    The first half is left out: a run begins with nothing under way.
    """
    values = [value for _, value in in_flight]
    middle, few = len(values) // 2, len(values) // 20
    growth = statistics.fmean(values[-2 * few - 1 :]) - statistics.fmean(
        values[middle - few : middle + few + 1]
    )
    # Half of the answers fall into this half, and each was an arrival and a departure.
    return growth > 0 and growth > WANDER * math.sqrt(answered + growth)


def grows(series: Series) -> bool:
    """Whether ``series`` has enough samples and surely rises."""
    if len(series) < LEAST_SAMPLES or series[-1][0] - series[0][0] < SHORTEST:
        return False
    times = [at for at, _ in series]
    values = [value for _, value in series]
    slope, intercept = statistics.linear_regression(times, values)
    middle = statistics.fmean(times)
    spread = math.fsum((at - middle) ** 2 for at in times)
    residual = math.fsum(
        (value - slope * at - intercept) ** 2 for at, value in zip(times, values, strict=True)
    )
    error = math.sqrt(residual / (len(series) - 2) / spread)
    begin, end = slope * times[0] + intercept, slope * times[-1] + intercept
    surely = slope - student_quantile(0.95, len(series) - 2) * error > 0
    return surely and end > GROWTH * max(begin, statistics.fmean(values) / 10)
