"""What a flood was found to take from a quiet tenant, and whether that is little enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from bench.flooding import figures
from bench.flooding.load import ARMS, NOISY, QUIET
from bench.flooding.measuring import Slice, Taken
from bench.flooding.settings import Amounts
from bench.measures.bound import Bound, Judgement, in_words
from bench.measures.comparison import FEWEST_PAIRS
from bench.noise import NOISY_CORES
from bench.records import STAGES, TIERS
from bench.reporting.bounds import bounds_table
from bench.reporting.document import (
    Cell,
    Document,
    Ecdf,
    Limit,
    Paragraph,
    Samples,
    Section,
    Table,
)
from bench.result import Verdict
from bench.statistics import median, supports_percentile

DROP = Bound("quiet_hit_ratio_drop", "at most", 0.02)
P99 = Bound("quiet_p99_ratio", "at most", 1.2)

_NOTE = (
    "Both tenants ask at one rate. In the one arm the noisy tenant's documents are within its "
    "quota, in the other they are many times as many; the quiet one's requests and all times are "
    "the same. All rounds' requests together; the interval (95 %) is a bootstrap over rounds, and "
    "its worse end counts."
)
_CONTROL = (
    "The same where both are one tenant, as in caches that know none: what comes last keeps the "
    "place."
)


def judgements(taken: Taken) -> list[Judgement]:
    """Both bounds."""
    statistics = ((DROP, figures.hit_ratio_drop), (P99, figures.ttft_ratio(99)))
    judged = []
    for bound, statistic in statistics:
        found = figures.moved(taken.quotas, statistic)
        judged.append(Judgement(bound, found.value, found.low, found.high))
    return judged


def metrics(judged: Sequence[Judgement], taken: Taken) -> dict[str, float]:
    """By name; ratios are fractions."""
    told: dict[str, float] = {
        "requests_per_s": taken.rate,
        "prefill_miss_ms": 1e3 * taken.miss,
        "prefill_hit_ms": 1e3 * taken.hit,
        "quiet_p50_ratio": figures.ttft_ratio(50)(taken.quotas),
    }
    for one in judged:
        told |= one.metrics()
    for before, slices in _groups(taken):
        for arm in ARMS:
            quiet, noisy = (figures.of_tenant(slices, arm, one) for one in (QUIET, NOISY))
            told[f"{before}{arm}_quiet_hit_ratio"] = figures.hit_ratio(quiet)
            told[f"{before}{arm}_noisy_hit_ratio"] = figures.hit_ratio(noisy)
            for rank in (50, 99):
                told[f"{before}{arm}_quiet_p{rank}_ttft_ms"] = 1e3 * figures.ttft(quiet, rank)
    if taken.control:
        told["control_quiet_hit_ratio_drop"] = figures.hit_ratio_drop(taken.control)
        told["control_quiet_p99_ratio"] = figures.ttft_ratio(99)(taken.control)
    return told


def verdict(judged: Sequence[Judgement], amounts: Amounts, taken: Taken) -> Verdict:
    """Valid where both bounds were measured as they are meant, and kept."""
    reasons = []
    free = {"rounds", "seconds", "lead", "control", "seed", "within"}
    meant = {**asdict(Amounts()), **{name: getattr(amounts, name) for name in free}}
    changed = [name for name, value in asdict(amounts).items() if value != meant[name]]
    if changed:
        reasons.append(f"the bounds are of other amounts: {', '.join(changed)}")
    if amounts.rounds < FEWEST_PAIRS:
        reasons.append(f"{amounts.rounds} rounds are too few for intervals")
    fewest = min(len(figures.of_tenant(taken.quotas, arm)) for arm in ARMS)
    if not supports_percentile(fewest, 99):
        reasons.append(f"{fewest} requests are too few for a p99")
    if not taken.control:
        reasons.append("without a control it is not known that the flood hurts anybody")
    elif DROP.kept(figures.hit_ratio_drop(taken.control)):
        reasons.append("the flood takes nothing from anybody where there are no quotas either")
    short = [one.bound.metric for one in judged if one.outcome == "short"]
    sentence = in_words(short)
    valid = not short and not reasons
    if taken.others > NOISY_CORES:
        reasons.append(f"others computed on {taken.others:.2f} cores meanwhile")
    return Verdict(valid=valid, sentence=sentence, reasons=tuple(reasons))


def document(judged: Sequence[Judgement], taken: Taken, subtitle: str, found: Verdict) -> Document:
    """Bounds first."""
    sections = [
        Section("Bounds", [bounds_table(judged), Paragraph(_NOTE)]),
        Section("With quotas", [_arms(taken.quotas), _stages(taken.quotas), _ecdf(taken.quotas)]),
    ]
    if taken.control:
        sections.append(Section("Without", [_arms(taken.control), Paragraph(_CONTROL)]))
    return Document("Flood", subtitle, found, sections)


def detail(taken: Taken) -> dict[str, object]:
    """Every slice: of each tenant the times and the cached tokens of its requests."""
    columns = ["at_s", "ttft_ms", "prompt", "cached", *(f"cached_{tier}" for tier in TIERS), "path"]
    return {
        "sizes": asdict(taken.many),
        "columns": columns,
        **{f"{before}slices": [_slice(one) for one in slices] for before, slices in _groups(taken)},
    }


def _slice(one: Slice) -> dict[str, object]:
    rows = {
        tenant: [
            [
                round(found.at, 2),
                round(1e3 * found.ttft, 1),
                found.prompt,
                found.cached,
                *(found.tiers.get(tier) for tier in TIERS),
                found.path,
            ]
            for found in one.of(tenant)
        ]
        for tenant in (QUIET, NOISY)
    }
    return {"arm": one.arm, "round": one.number, **rows}


def _groups(taken: Taken) -> list[tuple[str, Sequence[Slice]]]:
    with_control: list[tuple[str, Sequence[Slice]]] = [("", taken.quotas)]
    return [*with_control, ("control_", taken.control)] if taken.control else with_control


def _arms(slices: Sequence[Slice]) -> Table:
    rows: list[list[Cell]] = []
    for tenant in (QUIET, NOISY):
        for arm in ARMS:
            some = figures.of_tenant(slices, arm, tenant)
            tokens = sum(one.prompt for one in some)
            tiers = [sum(one.tiers.get(tier, 0) for one in some) / tokens for tier in TIERS]
            paths = Counter(one.path for one in some)
            ttfts = [1e3 * figures.ttft(some, rank) for rank in (50, 90, 99)]
            told = ", ".join(f"{path} {count}" for path, count in paths.most_common())
            rows.append(
                [f"{tenant}, {arm}", len(some), figures.hit_ratio(some), *tiers, *ttfts, told]
            )
    heads = ["requests", "hit ratio", *TIERS, "TTFT p50, ms", "p90, ms", "p99, ms", "paths"]
    return Table(["", *heads], rows)


def _stages(slices: Sequence[Slice]) -> Table:
    """Where the quiet tenant's slowest hundredth waits."""
    rows: list[list[Cell]] = []
    for arm in ARMS:
        some = sorted(figures.of_tenant(slices, arm), key=lambda one: one.ttft)
        slowest = some[-max(1, len(some) // 100) :]
        for name, part in (("all", some), ("slowest 1 %", slowest)):
            stages = [median([one.stages.get(stage, 0.0) for one in part]) for stage in STAGES]
            rows.append([f"quiet, {arm}, {name}", *stages])
    return Table(["median, ms", *STAGES], rows)


def _ecdf(slices: Sequence[Slice]) -> Ecdf:
    series = [
        Samples(arm, [1e3 * one.ttft for one in figures.of_tenant(slices, arm)]) for arm in ARMS
    ]
    limit = 1e3 * P99.limit * figures.ttft(figures.of_tenant(slices, "inside"), 99)
    return Ecdf(
        "TTFT of the quiet tenant",
        series,
        "TTFT, ms",
        limit=Limit(limit, "what p99 may be"),
    )
