"""What a run of the restart benchmark found: the bound, every round, the hit ratio over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from bench.measures.bound import Bound, Judgement
from bench.noise import NOISY_CORES
from bench.reporting.bounds import bounds_table
from bench.reporting.document import Cell, Document, Lines, Paragraph, Section, Series, Table
from bench.result import Verdict
from bench.routing.restarting import BACK, Restarts
from bench.routing.settings import RestartAmounts
from bench.routing.tally import Counts
from bench.routing.windows import windows
from bench.statistics import median

BOUND = Bound("restart_seconds_to_95", "at most", 10.0)

_BLIND = 0.8
"""Of the hit ratio: where workers chosen at random find more, steering shows in nothing."""

_NOTE = (
    "Hit ratio: the part of all prompts' tokens that a worker held when it took them up, as the "
    "workers count. Seconds are from the first snapshot that any worker sent the new proxy to the "
    "end of the first window that has {part:.0%} of the ratio before; the slowest round counts. "
    "Blind: the same prompts dealt to as many workers of the same size at random, counted beside."
)


def judgement(taken: Restarts, amounts: RestartAmounts) -> Judgement:
    """The slowest round; one that did not come back took as long as it was looked at."""
    return Judgement(BOUND, max(_seconds(taken, amounts)))


def metrics(judged: Judgement, taken: Restarts, amounts: RestartAmounts) -> dict[str, float]:
    """By name; medians of the rounds but for what is judged."""
    rounds = taken.rounds
    return {
        **judged.metrics(),
        "median_restart_seconds_to_95": median(_seconds(taken, amounts)),
        "hit_ratio_before": median([one.before for one in rounds]),
        "hit_ratio_after": median([one.after for one in rounds]),
        "hit_ratio_after_vs_before": median([one.after / one.before for one in rounds]),
        "hit_ratio_blind": median([one.blind for one in rounds]),
        "kill_to_first_replay_s": median([one.replay for one in rounds]),
        "kill_to_first_answer_s": median([one.answer for one in rounds]),
        "requests": float(taken.answered),
        "refused_and_asked_again": float(taken.refused),
    }


def verdict(judged: Judgement, taken: Restarts) -> Verdict:
    """Valid where the bound was kept and what came after it too, and hits depend on steering."""
    reasons = []
    before, blind = (median([getattr(one, of) for one in taken.rounds]) for of in _RATIOS)
    if blind > _BLIND * before:
        reasons.append(f"chosen at random workers hold {blind:.3f}, steered to {before:.3f}")
    if lost := [at for at, one in enumerate(taken.rounds, 1) if one.after < BACK * one.before]:
        # Of many short windows one is good by chance.
        reasons.append(f"all in all rounds {lost} did not come back to {BACK:.0%}")
    valid = judged.outcome == "kept" and not reasons
    if taken.others > NOISY_CORES:
        reasons.append(f"others computed on {taken.others:.2f} cores meanwhile")
    sentence = "Within its bound." if judged.outcome == "kept" else f"SHORT of {BOUND.metric}."
    return Verdict(valid=valid, sentence=sentence, reasons=tuple(reasons))


def document(
    judged: Judgement, taken: Restarts, amounts: RestartAmounts, subtitle: str, found: Verdict
) -> Document:
    """The bound first."""
    note = Paragraph(_NOTE.format(part=BACK))
    rows: list[list[Cell]] = [
        [at + 1, one.before, one.after, one.blind, one.replay, one.answer, one.back]
        for at, one in enumerate(taken.rounds)
    ]
    sections = [
        Section("Bound", [bounds_table([judged]), note]),
        Section("Rounds", [Table(_COLUMNS, rows)]),
        Section("Hit ratio over time", [_curves(taken, amounts)]),
    ]
    return Document("Restart of a proxy under load", subtitle, found, sections)


def detail(taken: Restarts, amounts: RestartAmounts) -> dict[str, object]:
    """Every round's figures; windows by their ends, in seconds from the first replay on."""
    return {
        "rounds": [asdict(one) for one in taken.rounds],
        "windows": [_ratios(samples, amounts) for samples in taken.samples],
    }


_RATIOS = ("before", "blind")
_COLUMNS = (
    "round",
    "before",
    "after",
    "blind",
    "kill to replay, s",
    "kill to answer, s",
    "replay to 95 %, s",
)


def _seconds(taken: Restarts, amounts: RestartAmounts) -> list[float]:
    return [amounts.after if one.back is None else one.back for one in taken.rounds]


def _ratios(samples: Sequence[Counts], amounts: RestartAmounts) -> list[dict[str, float]]:
    found = windows(samples, samples[0].at, amounts.window)
    return [{"end_s": one.last.at, "ratio": one.ratio, "blind": one.blind} for one in found]


def _curves(taken: Restarts, amounts: RestartAmounts) -> Lines:
    series = []
    for number, samples in enumerate(taken.samples):
        found = _ratios(samples, amounts)
        ends = [one["end_s"] for one in found]
        series.append(Series(f"round {number + 1}", ends, [one["ratio"] for one in found]))
        if number == 0:
            series.append(Series("blind, round 1", ends, [one["blind"] for one in found]))
    return Lines(
        "Hit ratio",
        series,
        x_label="end of a window, s from the first replay to the new proxy",
        y_label="hit ratio",
    )
