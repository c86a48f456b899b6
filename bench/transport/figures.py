"""From seconds to figures: medians of rounds, ratios within a round, and what they allow to say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.measures.comparison import FEWEST_PAIRS, compare
from bench.statistics import median, percentile, supports_percentile
from bench.transport.contender import Contender
from bench.transport.goals import Candidate, Figure, Goal

Seconds = Mapping[Figure, Sequence[Sequence[float]]]
"""See Taken."""


@dataclass
class Taken:
    """What a run has measured. ``seconds``: of every move, by figure, round by round.

    ``missing``: why a contender could not take part. ``versions``: of the others, by name.
    ``others``: cores that computed for somebody else meanwhile, on average.
    """

    seconds: dict[Figure, list[list[float]]] = field(default_factory=dict)
    missing: dict[Contender, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    others: float = 0.0


Outcome = Literal["kept", "short", "told", "not judged", "not measured"]


@dataclass(frozen=True)
class Row:
    """Seconds of one figure's moves in all rounds, and bytes a second at the median. ``p99`` is
    None where there were too few moves for one."""

    figure: Figure
    p50: float
    p99: float | None
    longest: float
    rate: float


@dataclass(frozen=True)
class Judgement:
    """A goal and what came of it: the worst of its candidates, told by ``of``. ``low`` and ``high``
    are None where there are too few rounds for an interval; ``reason``: why there is no value."""

    goal: Goal
    outcome: Outcome
    of: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Measured:
    candidate: Candidate
    value: float
    low: float | None
    high: float | None


def row(figure: Figure, rounds: Sequence[Sequence[float]]) -> Row:
    """What all moves of a figure say."""
    moves = [seconds for one in rounds for seconds in one]
    p99 = percentile(moves, 99) if supports_percentile(len(moves), 99) else None
    middle = median(moves)
    return Row(figure, middle, p99, max(moves), figure.case.size / middle)


def judge(goal: Goal, seconds: Seconds, missing: Mapping[Contender, str]) -> Judgement:
    """Whether the worst candidate's interval keeps to the goal. What was not measured never does.

    A goal of several candidates is not measured unless all of them are.
    """
    for figure in (figure for one in goal.candidates for figure in one.figures):
        if not seconds.get(figure):
            told = f"{figure.contender.name}, {figure.case.label}, was not in this run"
            return Judgement(goal, "not measured", reason=missing.get(figure.contender, told))
    worst = _worst(goal, [_measured(goal, one, seconds) for one in goal.candidates])
    return Judgement(
        goal, _outcome(goal, worst), worst.candidate.label, worst.value, worst.low, worst.high
    )


def _measured(goal: Goal, candidate: Candidate, seconds: Seconds) -> _Measured:
    over = _by_round(candidate.over, seconds, goal)
    if candidate.under is None:
        under = [1e-6 / candidate.over.case.size] * len(over)  # so the ratio is in microseconds
    else:
        under = _by_round(candidate.under, seconds, goal)
    if len(over) < FEWEST_PAIRS:
        logs = [math.log(a / b) for a, b in zip(over, under, strict=True)]
        return _Measured(candidate, math.exp(math.fsum(logs) / len(logs)), None, None)
    found = compare(under, over)
    return _Measured(candidate, found.ratio, found.low, found.high)


def _by_round(figure: Figure, seconds: Seconds, goal: Goal) -> list[float]:
    """A round's median, as bytes a second or as seconds for each byte."""
    each = [median(one) / figure.case.size for one in seconds[figure]]
    return [1 / one for one in each] if goal.of == "rate" else each


def _worst(goal: Goal, measured: Sequence[_Measured]) -> _Measured:
    if goal.kind == "at most":
        return max(measured, key=lambda one: one.value if one.high is None else one.high)
    return min(measured, key=lambda one: one.value if one.low is None else one.low)


def _outcome(goal: Goal, worst: _Measured) -> Outcome:
    if goal.limit is None:
        return "told"
    if worst.low is None or worst.high is None:
        return "not judged"
    kept = worst.high <= goal.limit if goal.kind == "at most" else worst.low >= goal.limit
    return "kept" if kept else "short"
