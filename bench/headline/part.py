"""What a part of the benchmark is: figures taken in turns, judged over all rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from bench.errors import BenchError
from bench.headline.amounts import Amounts
from bench.headline.turn import Turn

F = TypeVar("F")

ByRound = Mapping[str, Mapping[int, F]]
"""Figures by system's name, then by round."""


@dataclass(frozen=True)
class Judgement:
    """A part's outcome: named numbers, and whatever explains them.

    A metric that could not be taken is absent, with the reason among ``complaints``.
    """

    metrics: Mapping[str, float]
    detail: Mapping[str, Any] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()


class Part(Protocol[F]):
    """One part. ``every_round`` tells whether it is measured in each round or in one only."""

    name: str
    systems: frozenset[str]
    every_round: bool

    def seconds(self, system: str, amounts: Amounts) -> float:
        """About how long ``measure`` takes on the machine the bounds were set on."""

    async def measure(self, turn: Turn) -> F:
        """Figures of one system in one round. Raises RequestFailed, MeasureFailed."""

    def judge(self, figures: ByRound[F]) -> Judgement:
        """All rounds together."""


class MeasureFailed(BenchError):
    """A figure cannot be taken, or would not mean what it is to mean."""
