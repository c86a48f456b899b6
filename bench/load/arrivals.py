"""When requests arrive under open-loop load: at times of their own, whatever the server does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from bench.load.errors import BadLoad

Arrivals = Literal["poisson", "gamma", "constant"]


def times(
    kind: Arrivals, rate: float, source: random.Random, burstiness: float = 1.0
) -> Iterator[float]:
    """Seconds since the beginning, ascending, without end; ``rate`` per second on average.

    ``burstiness`` is the shape of gamma-distributed gaps, as vLLM's benchmark has it: 1 is
    Poisson, less is burstier, more is smoother. Raises BadLoad.
    """
    if not rate > 0:
        raise BadLoad(f"a rate is above 0 per second, not {rate:g}")
    if not burstiness > 0:
        raise BadLoad(f"a burstiness is above 0, not {burstiness:g}")
    return _times(kind, 1 / rate, source, burstiness)


def _times(kind: Arrivals, gap: float, source: random.Random, shape: float) -> Iterator[float]:
    if kind == "constant":
        number = 0
        while True:
            yield number * gap
            number += 1
    at = 0.0
    while True:
        drawn = source.expovariate(1.0) if kind == "poisson" else source.gammavariate(shape, 1.0)
        at += drawn * (gap if kind == "poisson" else gap / shape)
        yield at
