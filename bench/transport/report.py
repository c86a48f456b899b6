"""What a run of the transport benchmark found, as a document and as metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.measures.comparison import FEWEST_PAIRS
from bench.noise import NOISY_CORES
from bench.reporting.document import (
    TOO_FEW,
    Cell,
    Document,
    Lines,
    Paragraph,
    Section,
    Series,
    Table,
)
from bench.reporting.wording import tell
from bench.result import Verdict
from bench.statistics import median
from bench.transport.case import Case, told_bytes
from bench.transport.contender import Contender, Kvferry
from bench.transport.figures import Judgement, Row, Taken
from bench.transport.goals import SHARED_OUT

_TIMES = (
    "Times are from the moment pages are supplied until all of them are usable on the other side; "
    "GB/s are 10^9 bytes a second at the median. memcpy and gather are one thread's, shm reads "
    "what is long with two; CURVE and digests are off unless named."
)
_AT_ONCE = "Transfers at once"
_RATIOS_NOTE = (
    "Ratios are taken within a round; their interval (95 %) is a bootstrap over rounds, and its "
    "worse end is what counts. one_block_us is in microseconds."
)


def metrics(judgements: Sequence[Judgement]) -> dict[str, float]:
    """By name; ``_low`` and ``_high`` are the interval's ends."""
    found: dict[str, float] = {}
    for one in judgements:
        ends = (("", one.value), ("_low", one.low), ("_high", one.high))
        found |= {f"{one.goal.metric}{end}": at for end, at in ends if at is not None}
    return found


def detail(judgements: Sequence[Judgement], rows: Sequence[Row], taken: Taken) -> dict[str, object]:
    """What every ratio is of, and every figure in seconds, with each round's median."""
    return {
        "judgements": [
            {"metric": one.goal.metric, "of": one.of, "outcome": one.outcome, "reason": one.reason}
            for one in judgements
        ],
        "missing": {contender.name: why for contender, why in taken.missing.items()},
        "versions": taken.versions,
        "cores_of_others": taken.others,
        "figures": [
            {
                "contender": row.figure.contender.name,
                "bytes": row.figure.case.size,
                "order": row.figure.case.order,
                "transfers": row.figure.case.transfers,
                "p50_s": row.p50,
                "p99_s": row.p99,
                "longest_s": row.longest,
                "rounds_s": [median(one) for one in taken.seconds[row.figure]],
            }
            for row in rows
        ],
    }


def verdict(judgements: Sequence[Judgement], taken: Taken) -> Verdict:
    """Valid where every goal was judged and kept, on a machine that was ours."""
    reasons = [f"{contender.name}: {why}" for contender, why in taken.missing.items()]
    if taken.others > NOISY_CORES:
        reasons.append(f"others computed on {taken.others:.2f} cores meanwhile")
    told = []
    for outcome, words in (
        ("short", "SHORT of its bounds"),
        ("not measured", "not measured"),
        ("not judged", f"not judged, for want of {FEWEST_PAIRS} rounds"),
    ):
        if names := [one.goal.metric for one in judgements if one.outcome == outcome]:
            told.append(f"{words}: {', '.join(names)}")
    sentence = "; ".join(told) or "Within its bounds"
    return Verdict(valid=not told, sentence=f"{sentence}.", reasons=tuple(reasons))


def document(
    judgements: Sequence[Judgement], rows: Sequence[Row], subtitle: str, found: Verdict
) -> Document:
    """Ratios first, then every size, then the plots."""
    kinds: Mapping[str, list[Row]] = {"Contiguous pages": [], "Random pages": [], _AT_ONCE: []}
    for row in sorted(rows, key=lambda one: (one.figure.case.size, one.figure.contender.name)):
        kinds[_kind(row.figure.case)].append(row)
    tables = [Section(kind, [_table(chosen)]) for kind, chosen in kinds.items() if chosen]
    plots = [_plot(kind, chosen) for kind, chosen in kinds.items() if kind != _AT_ONCE]
    sections = [Section("Ratios", [_ratios(judgements), Paragraph(_TIMES)]), *tables]
    sections.append(Section("Throughput over size", plots, page_only=True))
    return Document("Transport", subtitle, found, sections)


def _kind(case: Case) -> str:
    if case.blocks == SHARED_OUT:
        return _AT_ONCE
    return "Contiguous pages" if case.order == "contiguous" else "Random pages"


def _ratios(judgements: Sequence[Judgement]) -> Table:
    rows: list[list[Cell]] = [
        [
            one.goal.metric,
            one.value,
            _interval(one),
            None if one.goal.limit is None else f"{one.goal.kind} {one.goal.limit:g}",
            one.outcome,
            one.of or one.reason,
        ]
        for one in judgements
    ]
    columns = ["metric", "value", "interval", "bound", "", "of"]
    return Table(columns, rows, note=_RATIOS_NOTE)


def _interval(one: Judgement) -> str | None:
    if one.low is None or one.high is None:
        return None
    return f"{tell(one.low)} to {tell(one.high)}"


def _table(rows: Sequence[Row]) -> Table:
    cells: list[list[Cell]] = [
        [
            told_bytes(row.figure.case.size),
            row.figure.contender.name,
            row.figure.case.transfers,
            row.p50 * 1e3,
            TOO_FEW if row.p99 is None else row.p99 * 1e3,
            row.longest * 1e3,
            _gb(row),
        ]
        for row in rows
    ]
    columns = ["size", "", "transfers", "median, ms", "p99, ms", "longest, ms", "GB/s"]
    return Table(columns, cells)


def _plot(kind: str, rows: Sequence[Row]) -> Lines:
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if not _switched(row.figure.contender):
            curves.setdefault(row.figure.contender.name, []).append(row)
    series = [
        Series(name, [row.figure.case.size / (1 << 20) for row in points], [_gb(r) for r in points])
        for name, points in curves.items()
        if len(points) > 1
    ]
    return Lines(kind, series, "size, MiB", "GB/s", log_x=True)


def _switched(contender: Contender) -> bool:
    """Measured with few sizes, so that tables tell it better than a curve."""
    return isinstance(contender, Kvferry) and (contender.digests or contender.curve)


def _gb(row: Row) -> float:
    return row.rate / 1e9
