"""The report of one run: the verdict, what failed, then how long things took and why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.records import STAGES, Record
from bench.reporting.document import (
    TOO_FEW,
    Bars,
    BarSeries,
    Block,
    Cell,
    Document,
    Ecdf,
    Limit,
    Paragraph,
    Samples,
    Section,
    StackedBars,
    Table,
)
from bench.reporting.timeline import spread_widely, timeline
from bench.result import Distribution, Hits, RunResult, Slo, TenantSummary
from bench.statistics import median

LATENCIES = {
    "ttft": "TTFT",
    "first_itl": "first ITL",
    "itl": "ITL",
    "tpot": "TPOT",
    "e2e": "E2E",
    "service_ttft": "TTFT, service time",
    "service_e2e": "E2E, service time",
    "lag": "schedule lag",
}
RANKS = ("p50", "p90", "p95", "p99")
_OF_A_LATENCY = re.compile(r"(mean|median|std|max|p\d+)_\w+_ms")
_LATENCY_NOTE = (
    "Milliseconds, of requests that were answered, counted from when the schedule wanted them "
    "sent; service times, from when they were. A percentile needs ten samples beyond it. "
    "First ITL: from the first token to the second. TPOT: mean time of a token after the first."
)
_STAGE_NAMES = {"handover": "hand-over", "first_decode": "first decode"}


def run_document(result: RunResult, records: Sequence[Record]) -> Document:
    """The report of a run. Requests other than the measured are left out of every plot."""
    measured = [record for record in records if record.phase == "measured"]
    good = [record for record in measured if record.ok]
    sections = [
        *_errors(result, len(measured)),
        Section(
            "Latency and throughput",
            [*_latencies(result.latencies), _figures(result.metrics)],
        ),
        Section("Distributions", _distributions(good, result.slo)),
        Section("Over time", timeline(measured) or [Paragraph("No request was measured.")]),
        *_breakdown(result.stages, good),
        Section("Prompt cache", _cache(result.hits)),
        *_tenants(result.tenants, result.metrics),
        Section("Settings and environment", _settings(result), page_only=True),
    ]
    return Document(f"kvferry bench {result.command}", _subtitle(result), result.verdict, sections)


def latency_table(latencies: Mapping[str, Distribution], first: str = "") -> Table:
    """A row for each distribution, known names first and in their order; milliseconds."""
    names = [name for name in LATENCIES if name in latencies]
    names += [name for name in latencies if name not in LATENCIES]
    rows = [[LATENCIES.get(name, name), *_row(latencies[name])] for name in names]
    return Table([first, "mean", *RANKS, "max", "samples"], rows, _LATENCY_NOTE)


def _latencies(latencies: Mapping[str, Distribution]) -> list[Block]:
    if not latencies:
        return [Paragraph("No request was answered, so there is no latency.")]
    return [latency_table(latencies)]


def _row(told: Distribution) -> list[Cell]:
    ranks = (getattr(told, rank) for rank in RANKS)
    percentiles = (TOO_FEW if value is None else float(value) for value in ranks)
    return [float(told.mean), *percentiles, float(told.max), told.count]


def _subtitle(result: RunResult) -> str:
    parts = [str(result.settings[key]) for key in ("model", "base") if result.settings.get(key)]
    if (requests := result.metrics.get("requests")) is not None:
        parts.append(f"{requests:,.0f} request{'' if requests == 1 else 's'}")
    if (seconds := result.metrics.get("duration_s")) is not None:
        parts.append(f"{seconds:,.1f} s")
    return " · ".join(parts)


def _errors(result: RunResult, measured: int) -> list[Section]:
    if not result.errors:
        return []
    failed = sum(result.errors.values())
    told = Paragraph(
        f"{failed:,} of {measured:,} requests failed. They are in no latency below, and in the "
        "denominator of every share.",
        "warning",
    )
    ordered = sorted(result.errors.items(), key=lambda item: (-item[1], item[0]))
    return [Section("Errors", [told, Table(["error", "requests"], ordered)])]


def _distributions(good: Sequence[Record], slo: Slo | None) -> list[Block]:
    firsts = [
        Samples("from intended send", _milliseconds([record.ttft for record in good])),
        Samples("service time", _milliseconds([record.service_ttft for record in good])),
    ]
    gaps = [record.gaps for record in good]
    between = [
        Samples("ITL", _milliseconds([gap for one in gaps for gap in one])),
        Samples("first ITL", _milliseconds([one[0] for one in gaps if one])),
        Samples("TPOT", _milliseconds([r.tpot for r in good if r.tpot is not None])),
    ]
    return [
        _ecdf("Time to first token", firsts, _limit(slo, "TTFT", slo.ttft_ms if slo else None)),
        _ecdf("Time between tokens", between, _limit(slo, "TPOT", slo.tpot_ms if slo else None)),
    ]


def _ecdf(title: str, series: Sequence[Samples], limit: Limit | None) -> Ecdf:
    wide = spread_widely([value for one in series for value in one.values])
    return Ecdf(title, series, "ms", log_x=wide, limit=limit)


def _limit(slo: Slo | None, metric: str, value: float | None) -> Limit | None:
    if slo is None or value is None:
        return None
    return Limit(value, f"{slo.name or 'SLO'}: {metric} ≤ {value:g} ms")


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [one * 1000 for one in seconds]


def _figures(metrics: Mapping[str, float]) -> Table:
    rows: list[list[Cell]] = [
        [name, int(value) if float(value).is_integer() else value]
        for name, value in metrics.items()
        if not _OF_A_LATENCY.fullmatch(name) and not name.startswith(("hit_ratio", "fairness"))
    ]
    return Table(["metric", "value"], rows, "Rates are per second; names as in result.json.")


def _breakdown(stages: Mapping[str, Distribution], good: Sequence[Record]) -> list[Section]:
    """Only of a server that tells its stages."""
    if not stages:
        return []
    names = [name for name in STAGES if name in stages]
    names += [name for name in stages if name not in STAGES]
    shown = {_STAGE_NAMES.get(name, name): stages[name] for name in names}
    parts = [BarSeries(name, [told.p50]) for name, told in shown.items()]
    bar = StackedBars(
        "TTFT by stage", ["p50"], parts, "ms",
        "The median of each stage. Medians do not add up exactly to the median of the whole.",
    )  # fmt: skip
    rows = [[name, *_row(told)] for name, told in shown.items()]
    table = Table(["stage", "mean", *RANKS, "max", "samples"], rows, "Milliseconds.")
    return [Section("Where the first token's time goes", [bar, table, *_paths(good)])]


def _paths(good: Sequence[Record]) -> list[Block]:
    by_path: dict[str, list[float]] = defaultdict(list)
    for record in good:
        if record.path:
            by_path[record.path].append(record.ttft * 1000)
    if not by_path:
        return []
    rows: list[list[Cell]] = [
        [path, len(ttfts), median(ttfts)] for path, ttfts in sorted(by_path.items())
    ]
    return [Table(["path", "requests", "TTFT p50, ms"], rows)]


def _cache(hits: Hits) -> list[Block]:
    shares: dict[str, float | None] = {
        "intended": hits.intended,
        "achieved": hits.achieved,
        **{f"from {tier}": share for tier, share in hits.by_tier.items()},
    }
    percents = [None if share is None else share * 100 for share in shares.values()]
    rows = [[name, percent] for name, percent in zip(shares, percents, strict=True)]
    note = "Of all prompt tokens."
    if hits.achieved is None:
        note += " The server does not tell how many of them it had cached."
    bars = Bars("Hit ratio", list(shares), [BarSeries("hit ratio", percents)], "% of prompt tokens")
    return [Table(["hit ratio", "%"], rows, note), bars]


def _tenants(tenants: Sequence[TenantSummary], metrics: Mapping[str, float]) -> list[Section]:
    """Only of a run with several tenants."""
    if len(tenants) < 2:
        return []
    rows = [
        [
            one.tenant or "(none)",
            one.requests,
            one.errors,
            TOO_FEW if one.p50_ttft_ms is None else one.p50_ttft_ms,
            TOO_FEW if one.p99_ttft_ms is None else one.p99_ttft_ms,
            float(one.output_tokens_per_s),
            None if one.hit_ratio is None else one.hit_ratio * 100,
        ]
        for one in tenants
    ]
    columns = [
        "tenant",
        "requests",
        "errors",
        "TTFT p50, ms",
        "TTFT p99, ms",
        "tokens/s",
        "hits, %",
    ]
    blocks: list[Block] = [Table(columns, rows)]
    if (fairness := metrics.get("fairness")) is not None:
        blocks.append(
            Paragraph(
                f"Fairness {fairness:.3f}: Jain's index over the tenants' median TTFT, "
                f"1 if all wait alike and {1 / len(tenants):.2g} if one waits alone."
            )
        )
    return [Section("Tenants", blocks)]


def _settings(result: RunResult) -> list[Block]:
    settings = dict(result.settings)
    if result.schedule_sha256:
        settings["schedule sha256"] = result.schedule_sha256
    return [_listing("setting", settings), _listing("environment", result.environment)]


def _listing(name: str, values: Mapping[str, Any]) -> Table:
    return Table([name, "value"], list(_flattened(values)))


def _flattened(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(str(one) for one in value)
        else:
            yield name, "" if value is None else str(value)
