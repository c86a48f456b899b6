"""The table a person reads and the object a program reads."""

from __future__ import annotations

from collections.abc import Sequence

from bench.headline.amounts import Amounts
from bench.headline.bounds import Verdict
from bench.headline.phases import Phase

_WIDTHS = (31, 12, 16, 13)


def table(verdicts: Sequence[Verdict]) -> str:
    """One line for each metric: value, bound, outcome."""
    rows = [("metric", "value", "bound", "")]
    for verdict in verdicts:
        value = "-" if verdict.value is None else f"{verdict.value:.4g}"
        bound = "" if verdict.limit is None else f"{verdict.kind} {verdict.limit:.4g}"
        rows.append((verdict.metric, value, bound, verdict.outcome))
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, _WIDTHS, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(max(lines, key=len)))
    return "\n".join(lines)


def time_plan(phases: Sequence[Phase], amounts: Amounts) -> str:
    """The turns in order with the time each should take."""
    lines, total = [], 0.0
    for phase in phases:
        for turn in phase.turns:
            seconds = turn.seconds(amounts)
            total += seconds
            parts = ", ".join(part.name for part in turn.parts)
            lines.append(
                f"  round {turn.number}  {turn.system:8} {phase.dtype:9} {seconds:5.0f} s  {parts}"
            )
    lines.append(f"  about {total / 60:.0f} minutes on the machine the bounds were set on")
    return "\n".join(lines)
