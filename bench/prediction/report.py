"""What was predicted against what came: bounds, paths, and the requests that were furthest off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bench.measures.bound import Bound, Judgement, in_words
from bench.noise import NOISY_CORES
from bench.prediction.asking import Asked
from bench.records import TIERS
from bench.reporting.bounds import bounds_table
from bench.reporting.document import Cell, Document, Paragraph, Section, Table
from bench.result import Verdict
from bench.statistics import median, percentile

EQUAL = Bound("equal_cached_share", "at least", 0.99)
ERROR = Bound("ttft_error_p50", "at most", 0.25)
MEANT = 500
"""Requests that the bounds are of."""

_LEAST_HITS = 0.5
"""Of the requests: that nothing was found where nothing was foretold says little."""

_WORST = 15
_PARTS = {
    "queue": ("route", "queue"),
    "prefill": ("prefill",),
    "after": ("ship", "handover", "first_decode"),
}
"""Of a TTFT, as they are foretold, and the stages that they come to."""
_NOTE = (
    "A request whose cached tokens nobody predicted, or that failed, counts as not equal. The TTFT "
    "error is |predicted / actual - 1|, the actual one as the client saw it from its send on."
)


def judgements(found: Sequence[Asked]) -> list[Judgement]:
    """Both bounds, as far as anything was measured."""
    judged = [Judgement(EQUAL, _share(found))]
    errors = _errors(found)
    if errors:
        judged.append(Judgement(ERROR, median(errors)))
    return judged


def metrics(found: Sequence[Asked]) -> dict[str, float]:
    """By name; errors are fractions."""
    told = {one.bound.metric: one.value for one in judgements(found)}
    hits = _hits(found)
    told["hits"], told["hits_equal_cached_share"] = len(hits), _share(hits)
    told["requests"], told["failed"] = len(found), sum(1 for one in found if one.error)
    if errors := _errors(found):
        told["ttft_error_p90"] = percentile(errors, 90)
        told["ttft_ratio_p50"] = median([one.ratio for one in found if one.ratio is not None])
    for path in _paths(found):
        of_path = [one for one in found if one.path == path]
        told[f"{path}_requests"] = len(of_path)
        told[f"{path}_equal_cached_share"] = _share(of_path)
        if errors := _errors(of_path):
            told[f"{path}_ttft_error_p50"] = median(errors)
    return told


def verdict(found: Sequence[Asked], others: float) -> Verdict:
    """Valid where both bounds were measured as they are meant, and kept."""
    short = [one.bound.metric for one in judgements(found) if one.outcome == "short"]
    reasons = []
    if len(found) < MEANT:
        reasons.append(f"the bounds are of {MEANT} requests")
    if len(hits := _hits(found)) < _LEAST_HITS * len(found):
        reasons.append(f"only {len(hits)} requests found anything, or were to")
    if not _errors(found):
        reasons.append("the server predicts nothing")
    if failed := sum(1 for one in found if one.error):
        reasons.append(f"{failed} requests failed")
    valid = not short and not reasons
    if others > NOISY_CORES:
        reasons.append(f"others computed on {others:.2f} cores meanwhile")
    sentence = in_words(short)
    return Verdict(valid=valid, sentence=sentence, reasons=tuple(reasons))


def document(found: Sequence[Asked], subtitle: str, judged: Verdict) -> Document:
    """Bounds first."""
    sections = [
        Section("Bounds", [bounds_table(judgements(found)), Paragraph(_NOTE)]),
        Section("Paths", [_groups(found, "path")]),
        Section("Kinds", [_groups(found, "kind")]),
    ]
    different = [one for one in found if not one.equal][:_WORST]
    if different:
        sections.append(Section("Other tokens than predicted", [_requests(different)]))
    worst = sorted((one for one in found if one.ratio is not None), key=_off, reverse=True)
    sections.append(Section("TTFT furthest off", [_requests(worst[:_WORST])]))
    return Document("Predictions", subtitle, judged, sections)


def detail(found: Sequence[Asked]) -> dict[str, list[Any]]:
    """Every request: what was foretold of it, and what came. Milliseconds."""
    columns = ["number", "at_s", "kind", "path", "error", "prompt", "cached_gpu", "cached_dram"]
    for name in ("cached", "ttft", *_PARTS):
        columns += [name, f"predicted_{name}"]
    return {"columns": columns, "requests": [_row(one) for one in found]}


def _row(one: Asked) -> list[Any]:
    tiers = [one.tiers.get(tier) for tier in TIERS]
    row: list[Any] = [
        one.number,
        round(one.at, 3),
        one.kind,
        one.path,
        one.error,
        one.prompt,
        *tiers,
    ]
    row += [one.cached, one.predicted_cached, _ms(one.ttft), _ms(one.predicted_ttft)]
    for part, stages in _PARTS.items():
        told = [one.stages[name] for name in stages if name in one.stages]
        row += [round(sum(told), 1) if told else None, one.predicted.get(part)]
    return row


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)


def _share(found: Sequence[Asked]) -> float:
    return sum(1 for one in found if one.equal) / len(found) if found else 0.0


def _hits(found: Sequence[Asked]) -> Sequence[Asked]:
    """Those of which some tokens were cached, or should have been."""
    return [one for one in found if one.cached or one.predicted_cached]


def _errors(found: Sequence[Asked]) -> list[float]:
    return [abs(one.ratio - 1) for one in found if one.ratio is not None]


def _off(one: Asked) -> float:
    """The same for twice and for half."""
    return abs(math.log(one.ratio)) if one.ratio else 0.0


def _paths(found: Sequence[Asked]) -> list[str]:
    return sorted({one.path for one in found if one.path})


def _groups(found: Sequence[Asked], by: str) -> Table:
    rows: list[list[Cell]] = []
    for name in sorted({getattr(one, by) for one in found}):
        group = [one for one in found if getattr(one, by) == name]
        errors = _errors(group)
        seconds = [one.ttft for one in group if one.ttft is not None]
        cached = sum(one.cached or 0 for one in group) / max(1, sum(o.prompt or 0 for o in group))
        rows.append(
            [
                name or "none",
                len(group),
                _share(group),
                cached,
                1e3 * median(seconds) if seconds else None,
                median(errors) if errors else None,
                percentile(errors, 90) if errors else None,
            ]
        )
    heads = ["requests", "equal cached", "hit ratio", "TTFT p50, ms", "error p50", "error p90"]
    return Table([by, *heads], rows)


def _requests(found: Sequence[Asked]) -> Table:
    rows: list[list[Cell]] = [
        [
            one.number,
            one.kind,
            one.path or one.error or "none",
            one.prompt,
            one.predicted_cached,
            one.cached,
            None if one.predicted_ttft is None else 1e3 * one.predicted_ttft,
            None if one.ttft is None else 1e3 * one.ttft,
        ]
        for one in found
    ]
    heads = ["number", "kind", "path", "prompt", "predicted", "cached"]
    return Table([*heads, "TTFT predicted, ms", "TTFT, ms"], rows)
