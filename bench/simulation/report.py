"""What a simulation found: bounds, every policy's figures, the distribution of TTFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.measures.bound import Bound, in_words
from bench.reporting.document import Cell, Document, Ecdf, Paragraph, Samples, Section, Table
from bench.result import Verdict
from bench.simulation.outcome import Oracle, Outcome
from bench.simulation.replaying import OURS, Faults

_SHOWN = 2000
"""Samples of a distribution that are drawn."""

CONVERSATIONS = 12_031
"""Requests of Mooncake's conversation trace, which the bounds of a hit ratio are of."""

BLOCKS = 4000
UTILIZATION = 0.8
"""And of such caches, and such a load."""


@dataclass(frozen=True)
class Replays:
    """``outcomes`` by policy, of the same prompts in worlds alike. ``unscoped``: ours, of a single
    tenant; ``undisturbed``: ours, without faults; None where it is the same as ``outcomes``.
    """

    oracle: Oracle
    outcomes: Mapping[str, Outcome]
    workers: int
    blocks: int
    tenants: int
    utilization: float
    faults: Faults
    stretch: float | None
    unscoped: Outcome | None = None
    undisturbed: Outcome | None = None

    @property
    def timed(self) -> bool:
        """Whether engines took time."""
        return self.stretch is not None

    @property
    def others(self) -> list[Outcome]:
        """Of the policies that are not ours."""
        return [one for name, one in self.outcomes.items() if name != OURS]


def metrics(found: Replays) -> dict[str, float]:
    """By name."""
    told: dict[str, float] = {"oracle_hit_ratio": found.oracle.hit_ratio}
    if found.stretch is not None:
        told["time_stretch"] = found.stretch
    for name, outcome in found.outcomes.items():
        prefix = "" if name == OURS else f"{name.replace('-', '_')}_"
        told[f"{prefix}hit_ratio"] = outcome.hit_ratio
        told[f"{prefix}imbalance"] = outcome.imbalance
        told[f"{prefix}cross_tenant_hits"] = outcome.cross_tenant_hits
        if found.timed:
            told[f"{prefix}ttft_p50_s"] = outcome.ttft(50)
            told[f"{prefix}ttft_p99_s"] = outcome.ttft(99)
    if (ours := found.outcomes.get(OURS)) is not None:
        told |= _ours(ours, found)
    return told


def _ours(ours: Outcome, found: Replays) -> dict[str, float]:
    told: dict[str, float] = {}
    if found.timed:
        told["ttft_p99_vs_no_queue"] = ours.ttft(99) / ours.no_queue(99)
        for rank in (50, 99) if found.others else ():
            best = min(other.ttft(rank) for other in found.others)
            told[f"ttft_p{rank}_vs_best_other"] = ours.ttft(rank) / best
    if found.unscoped is not None:
        told["hit_ratio_vs_unscoped"] = ours.hit_ratio / found.unscoped.hit_ratio
    if found.faults.restart_every is not None:
        told["restarts"] = ours.restarts
    if found.undisturbed is not None:
        told["hit_ratio_vs_undisturbed"] = ours.hit_ratio / found.undisturbed.hit_ratio
        if found.timed:
            told["ttft_p99_vs_undisturbed"] = ours.ttft(99) / found.undisturbed.ttft(99)
    return told


def bounds(found: Replays, requests: int) -> list[Bound]:
    """Those that such a run is held to."""
    if OURS not in found.outcomes:
        return []
    held = [Bound("cross_tenant_hits", "at most", 0)]
    if found.timed:
        held.append(Bound("ttft_p99_vs_no_queue", "at most", 1.25))
    if found.timed and found.others:
        held += [Bound(f"ttft_p{rank}_vs_best_other", "at most", 1.0) for rank in (50, 99)]
    if found.unscoped is not None:
        held.append(Bound("hit_ratio_vs_unscoped", "at least", 0.98))
    if found.undisturbed is not None:
        held.append(Bound("hit_ratio_vs_undisturbed", "at least", 0.95))
    known = found.timed and requests == CONVERSATIONS and found.blocks == BLOCKS
    if known and not found.faults and found.utilization == UTILIZATION and found.tenants == 1:
        limits = {8: (0.333, 1.05), 32: (0.366, 1.1)}.get(found.workers)
        if limits is not None:
            held.append(Bound("hit_ratio", "at least", limits[0]))
            held.append(Bound("imbalance", "at most", limits[1]))
    return held


def verdict(told: Mapping[str, float], held: Sequence[Bound]) -> Verdict:
    """Valid where every bound was kept."""
    if not held:
        return Verdict(valid=True, sentence="Other policies alone: nothing is judged.")
    short = [one.metric for one in held if not one.kept(told[one.metric])]
    sentence = in_words(short)
    reasons = ("no worker was restarted",) if told.get("restarts") == 0 else ()
    return Verdict(valid=not short and not reasons, sentence=sentence, reasons=reasons)


def document(
    found: Replays, told: Mapping[str, float], held: Sequence[Bound], judged: Verdict, subtitle: str
) -> Document:
    """Bounds first."""
    rows: list[list[Cell]] = [
        [
            one.metric,
            told[one.metric],
            f"{one.kind} {one.limit:g}",
            "kept" if one.kept(told[one.metric]) else "short",
        ]
        for one in held
    ]
    sections = [
        Section("Bounds", [Table(["metric", "value", "bound", ""], rows)]),
        Section("Policies", [_policies(found), Paragraph(_note(found))]),
    ]
    if found.timed:
        samples = [Samples(name, _thinned(one.ttfts)) for name, one in found.outcomes.items()]
        sections.append(Section("TTFT", [Ecdf("TTFT", samples, "TTFT, s", log_x=True)]))
    return Document("Steering", subtitle, judged, sections)


def detail(found: Replays) -> dict[str, object]:
    """The distribution of TTFT, by policy: its percentiles, seconds."""
    if not found.timed:
        return {}
    ranks = [*range(0, 100, 5), 99, 99.5, 100]
    return {
        "ranks": ranks,
        "ttft_s": {
            name: [one.ttft(rank) for rank in ranks] for name, one in found.outcomes.items()
        },
    }


def _policies(found: Replays) -> Table:
    columns = ["policy", "hit ratio", "busiest / mean"]
    if found.timed:
        columns += ["TTFT p50, s", "p90, s", "p99, s", "p99 without queues, s"]
    rows: list[list[Cell]] = []
    for name, one in found.outcomes.items():
        row: list[Cell] = [name, one.hit_ratio, one.imbalance]
        if found.timed:
            row += [one.ttft(50), one.ttft(90), one.ttft(99), one.no_queue(99)]
        rows.append(row)
    rows.append(["infinite cache", found.oracle.hit_ratio, *[None] * (len(columns) - 2)])
    return Table(columns, rows)


def _note(found: Replays) -> str:
    pace = "Prompts take no time; only their placement counts. "
    if found.stretch is not None:
        pace = (
            f"The trace's times are multiplied by {found.stretch:.3g}, so that the load is what an "
            "infinite cache would leave of it, at the utilisation asked for. "
        )
    return pace + (
        f"kvferry's own steering hears of blocks by real feed messages, with a delay"
        f"{f', of which {found.faults.lost:.0%} are lost' if found.faults.lost else ''}; the other "
        "policies see at once what every engine holds and how much work lies before it."
    )


def _thinned(values: Sequence[float]) -> Sequence[float]:
    return values[:: max(1, len(values) // _SHOWN)]
