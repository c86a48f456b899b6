"""What a run of the index benchmark found: bounds, the worlds, the intake."""

from __future__ import annotations

from collections.abc import Sequence

from bench.directory.intake import BLOCKS_A_MESSAGE, BURST
from bench.directory.measuring import Taken
from bench.directory.world import LENGTH, Shape
from bench.measures.bound import Bound, Judgement, in_words, judged_ratio
from bench.measures.comparison import FEWEST_PAIRS
from bench.noise import NOISY_CORES
from bench.reporting.bounds import bounds_table
from bench.reporting.document import Cell, Document, Paragraph, Section, Table
from bench.result import Verdict
from bench.statistics import median

SMALL = Shape(1_000_000)
LARGE = 100_000_000
"""Entries of the largest world that the bounds speak of."""

MANY_WORKERS = Shape(1_000_000, workers=1000)
ONE_TENANT = Shape(10_000_000)
MANY_TENANTS = Shape(10_000_000, tenants=10_000)
"""Enough entries for each tenant to have two conversations."""

_NOTE = (
    f"A lookup is of a prompt of {LENGTH} blocks: which workers hold how much of it, grouped by "
    "how much. Reading off each worker's own figure takes longer. Ratios are taken within a round; "
    "their interval (95 %) is a bootstrap over rounds, and its worse end is what counts. Memory is "
    "what the process grew by, all of the directory's state included."
)


BOUNDS = (
    Bound("lookup_1e8_vs_1e6", "at most", 2.0),
    Bound("lookup_1000w_vs_8w", "at most", 1.5),
    Bound("lookup_10000t_vs_1t", "at most", 1.2),
    Bound("bytes_per_entry", "at most", 40),
    Bound("events_per_s", "at least", 1e6),
)


def judgements(taken: Taken, largest: Shape) -> list[Judgement]:
    """Every bound, from what has been measured."""
    lookups = taken.lookups
    found = {
        "lookup_1e8_vs_1e6": (lookups[SMALL], lookups[largest]),
        "lookup_1000w_vs_8w": (lookups[SMALL], lookups[MANY_WORKERS]),
        "lookup_10000t_vs_1t": (lookups[ONE_TENANT], lookups[MANY_TENANTS]),
        "events_per_s": ([1.0] * len(taken.intake[BURST]), taken.intake[BURST]),
    }
    judged = []
    for bound in BOUNDS:
        if bound.metric == "bytes_per_entry":
            judged.append(Judgement(bound, taken.memory[largest] / taken.entries[largest]))
        else:
            judged.append(judged_ratio(bound, *found[bound.metric]))
    return judged


def metrics(judged: Sequence[Judgement], taken: Taken) -> dict[str, float]:
    """By name; ``_low`` and ``_high`` are the interval's ends."""
    found: dict[str, float] = {}
    for one in judged:
        found |= one.metrics()
    each = [a / b for a, b in zip(taken.each[MANY_WORKERS], taken.each[SMALL], strict=True)]
    found["lookup_each_1000w_vs_8w"] = median(each)
    return found | {"events_per_s_one_by_one": median(taken.intake[1])}


def verdict(judged: Sequence[Judgement], largest: Shape, rounds: int, others: float) -> Verdict:
    """Valid where every bound was kept, as it was meant."""
    reasons = []
    if largest.entries != LARGE:
        reasons.append(f"the bounds are of {LARGE:.0e} entries, not {largest.entries:.0e}")
    if rounds < FEWEST_PAIRS:
        reasons.append(f"{rounds} rounds are too few for intervals")
    short = [one.bound.metric for one in judged if one.outcome == "short"]
    sentence = in_words(short)
    valid = not short and not reasons
    if others > NOISY_CORES:
        reasons.append(f"others computed on {others:.2f} cores meanwhile")
    return Verdict(valid=valid, sentence=sentence, reasons=tuple(reasons))


def document(judged: Sequence[Judgement], taken: Taken, subtitle: str, found: Verdict) -> Document:
    """Bounds first."""
    return Document(
        "Index",
        subtitle,
        found,
        [
            Section("Bounds", [bounds_table(judged), Paragraph(_NOTE)]),
            Section("Lookups", [_worlds(taken)]),
            Section("Intake", [_intake(taken)]),
        ],
    )


def detail(taken: Taken) -> dict[str, object]:
    """Every round's figures."""
    worlds = [
        {
            "world": shape.label,
            "entries": taken.entries[shape],
            "memory_bytes": taken.memory[shape],
            "lookup_s": seconds,
            "lookup_each_s": taken.each[shape],
        }
        for shape, seconds in taken.lookups.items()
    ]
    return {"worlds": worlds, "intake_per_s": {str(at): one for at, one in taken.intake.items()}}


def _worlds(taken: Taken) -> Table:
    rows: list[list[Cell]] = [
        [
            shape.label,
            median(seconds) * 1e6,
            median(taken.each[shape]) * 1e6,
            taken.entries[shape],
            taken.memory[shape] / (1 << 20),
            taken.memory[shape] / taken.entries[shape],
        ]
        for shape, seconds in taken.lookups.items()
    ]
    columns = [
        "world",
        "lookup, us",
        "and each worker's, us",
        "entries",
        "memory, MiB",
        "bytes per entry",
    ]
    return Table(columns, rows)


def _intake(taken: Taken) -> Table:
    rows: list[list[Cell]] = [
        [messages, BLOCKS_A_MESSAGE, median(rates) / 1e6]
        for messages, rates in taken.intake.items()
    ]
    return Table(["messages at a time", "blocks each", "million block operations per s"], rows)
