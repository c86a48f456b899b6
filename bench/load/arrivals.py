"""When requests arrive under open-loop load: at times of their own, whatever the server does."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Literal

from bench.load.errors import BadLoad

Arrivals = Literal["poisson", "gamma", "constant"]

SMOOTHEST = 1e4
BURSTIEST = 1e-4
"""Bounds of a burstiness. Beyond them gamma-distributed gaps are too small for a float to tell."""


def times(
    kind: Arrivals, rate: float, source: random.Random, burstiness: float = 1.0
) -> Iterator[float]:
    """Seconds since the beginning, ascending, without end; ``rate`` per second on average.

    ``burstiness`` is the shape of gamma-distributed gaps, as vLLM's benchmark has it: 1 is
    Poisson, less is burstier, more is smoother. The beginning falls anywhere within a gap, so the
    rate holds from there on; were it an arrival, every bursty client would begin with a burst.
    Raises BadLoad.
    """
    if not 0 < rate < math.inf:
        raise BadLoad(f"a rate is above 0 per second, not {rate:g}")
    if not BURSTIEST <= burstiness <= SMOOTHEST:
        raise BadLoad(
            f"a burstiness is from {BURSTIEST:g} to {SMOOTHEST:g}, not {burstiness:g}: "
            "1 is Poisson, less is burstier"
        )
    return _times(kind, 1 / rate, source, burstiness)


def _times(kind: Arrivals, gap: float, source: random.Random, shape: float) -> Iterator[float]:
    if kind == "constant":
        number = 0
        while True:
            yield number * gap
            number += 1
    if kind == "poisson":
        shape = 1.0
    # A gap that holds a given moment is longer than others: it has one more for its shape.
    at = source.random() * source.gammavariate(shape + 1, gap / shape)
    while True:
        yield at
        at += source.gammavariate(shape, gap / shape)
