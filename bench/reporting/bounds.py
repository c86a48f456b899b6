"""What was held to a bound, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from bench.measures.bound import Judgement
from bench.reporting.document import Cell, Table
from bench.reporting.wording import tell


def bounds_table(judged: Sequence[Judgement]) -> Table:
    """A row for each."""
    rows: list[list[Cell]] = [
        [
            one.bound.metric,
            one.value,
            None if one.low is None or one.high is None else f"{tell(one.low)} to {tell(one.high)}",
            f"{one.bound.kind} {one.bound.limit:g}",
            one.outcome,
        ]
        for one in judged
    ]
    return Table(["metric", "value", "interval", "bound", ""], rows)
