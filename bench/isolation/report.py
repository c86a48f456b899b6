"""What keeping tenants apart was found to cost, and whether that is little enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from bench.isolation.caches import Hits
from bench.isolation.proxies import BUILDS, Build, Taken
from bench.isolation.settings import Amounts
from bench.measures.bound import Bound, Judgement, in_words, judged_ratio
from bench.measures.comparison import FEWEST_PAIRS
from bench.noise import NOISY_CORES
from bench.reporting.bounds import bounds_table
from bench.reporting.document import Cell, Document, Paragraph, Section, Table
from bench.result import Verdict
from bench.routing.prompts import KINDS
from bench.statistics import median

CPU = {kind: Bound(f"proxy_cpu_ratio_{kind}", "at most", 1.05) for kind in KINDS}
HITS = {
    tier: Bound(f"single_tenant_{tier}_hits_ratio", "at least", 0.99) for tier in ("gpu", "dram")
}

_NOTE = (
    "CPU time of the proxy for a request, over that of a copy which serves a single client and "
    "keeps nobody apart; taken within a round, the interval (95 %) is over rounds and its worse "
    "end counts. Hits: tokens of one tenant's trace that are found where memory knows tenants, "
    "over those that are found where it is as the engine or LMCache has it."
)


def judgements(taken: Taken, hits: Sequence[Hits]) -> list[Judgement]:
    """Every bound."""
    judged = []
    for kind, bound in CPU.items():
        ours, theirs = ([one.us for one in taken.bursts[build, kind]] for build in _BOTH)
        judged.append(judged_ratio(bound, theirs, ours))
    judged += [Judgement(HITS[one.tier], one.ours / one.theirs) for one in hits]
    return judged


def metrics(judged: Sequence[Judgement], taken: Taken, hits: Sequence[Hits]) -> dict[str, float]:
    """By name; ``us``: medians of the rounds."""
    told: dict[str, float] = {}
    for one in judged:
        told |= one.metrics()
    for (build, kind), bursts in taken.bursts.items():
        told[f"{build}_proxy_us_{kind}"] = median([one.us for one in bursts])
    for found in hits:
        told[f"{found.tier}_hit_ratio"] = found.ours
        told[f"{found.tier}_hit_ratio_{found.called}"] = found.theirs
        told[f"{found.tier}_hit_ratio_lru"] = found.ideal
    return told


def verdict(judged: Sequence[Judgement], amounts: Amounts, taken: Taken) -> Verdict:
    """Valid where every bound was measured as it was meant, and kept."""
    reasons = []
    meant = {**asdict(Amounts()), "rounds": amounts.rounds, "seed": amounts.seed}
    changed = [name for name, value in asdict(amounts).items() if value != meant[name]]
    if changed:
        reasons.append(f"the bounds are of other amounts: {', '.join(changed)}")
    if amounts.rounds < FEWEST_PAIRS:
        reasons.append(f"{amounts.rounds} rounds are too few for intervals")
    short = [one.bound.metric for one in judged if one.outcome == "short"]
    sentence = in_words(short)
    valid = not short and not reasons
    if taken.others > NOISY_CORES:
        reasons.append(f"others computed on {taken.others:.2f} cores meanwhile")
    return Verdict(valid=valid, sentence=sentence, reasons=tuple(reasons))


def document(
    judged: Sequence[Judgement], taken: Taken, hits: Sequence[Hits], subtitle: str, found: Verdict
) -> Document:
    """Bounds first."""
    sections = [
        Section("Bounds", [bounds_table(judged), Paragraph(_NOTE)]),
        Section("The proxy", [_proxies(taken)]),
        Section("Caches with one tenant", [_caches(hits)]),
    ]
    return Document("Isolation", subtitle, found, sections)


def detail(taken: Taken, hits: Sequence[Hits]) -> dict[str, object]:
    """Every round's figures."""
    return {
        "bursts": {
            f"{build} {kind}": [asdict(one) for one in bursts]
            for (build, kind), bursts in taken.bursts.items()
        },
        "hits": [asdict(one) for one in hits],
    }


_BOTH: tuple[Build, Build] = BUILDS


def _proxies(taken: Taken) -> Table:
    rows: list[list[Cell]] = []
    for (build, kind), bursts in taken.bursts.items():
        rows.append(
            [
                f"{build}, {kind}B",
                median([one.us for one in bursts]),
                median([one.busy for one in bursts]),
                median([one.per_second for one in bursts]),
            ]
        )
    return Table(["", "CPU for a request, us", "busy", "requests/s"], rows)


def _caches(hits: Sequence[Hits]) -> Table:
    rows: list[list[Cell]] = [
        [one.tier, one.blocks, one.ours, f"{one.called}: {one.theirs:.4f}", one.ideal]
        for one in hits
    ]
    return Table(["tier", "blocks", "hit ratio", "without tenants", "one LRU of all"], rows)
