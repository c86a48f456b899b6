"""What the quiet tenant found and waited in both arms, and how far its figures moved. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.flooding.asking import Found
from bench.flooding.load import QUIET, Arm
from bench.flooding.measuring import Slice
from bench.measures.comparison import FEWEST_PAIRS, widened_tail
from bench.statistics import percentile

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Moved:
    """A figure of all rounds together; its interval's ends where the rounds are enough for one."""

    value: float
    low: float | None = None
    high: float | None = None


Statistic = Callable[[Sequence[Slice]], float]


def of_tenant(slices: Sequence[Slice], arm: Arm, tenant: str = QUIET) -> list[Found]:
    """All requests of ``tenant`` in ``arm``."""
    return [found for one in slices if one.arm == arm for found in one.of(tenant)]


def hit_ratio(requests: Sequence[Found]) -> float:
    """Cached tokens, of all of their prompts'. Raises ValueError where there are none."""
    if not requests:
        raise ValueError("no requests")
    return sum(one.cached for one in requests) / sum(one.prompt for one in requests)


def hit_ratio_drop(slices: Sequence[Slice]) -> float:
    """By how much the quiet tenant's is lower where the other one floods."""
    return hit_ratio(of_tenant(slices, "inside")) - hit_ratio(of_tenant(slices, "flood"))


def ttft(requests: Sequence[Found], rank: float) -> float:
    """Seconds."""
    return percentile([one.ttft for one in requests], rank)


def ttft_ratio(rank: float) -> Statistic:
    """The quiet tenant's where the other one floods, over that where it does not."""
    return lambda slices: (
        ttft(of_tenant(slices, "flood"), rank) / ttft(of_tenant(slices, "inside"), rank)
    )


def moved(slices: Sequence[Slice], statistic: Statistic) -> Moved:
    """``statistic``, and its bootstrap interval over rounds: of a round both arms are drawn, with
    all their requests, since those of a slice wait for one another.
    """
    rounds = sorted({one.number for one in slices})
    if len(rounds) < FEWEST_PAIRS:
        return Moved(statistic(slices))
    of_round = {number: [one for one in slices if one.number == number] for number in rounds}
    dice = random.Random(0)
    drawn = sorted(
        statistic(
            [one for number in dice.choices(rounds, k=len(rounds)) for one in of_round[number]]
        )
        for _ in range(RESAMPLES)
    )
    tail = widened_tail(len(rounds), CONFIDENCE)
    low = drawn[max(0, math.floor(tail * RESAMPLES))]
    high = drawn[min(RESAMPLES - 1, math.ceil((1 - tail) * RESAMPLES) - 1)]
    return Moved(statistic(slices), low, high)
