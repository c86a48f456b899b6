"""Records of one run become its figures and its verdict.

Failed requests are in no latency and in every denominator. Figures that would mislead (too few
samples, a client that was late, caches that were not as intended) are withheld or called invalid.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import EXHAUSTED
from bench.measures.slo import met
from bench.records import STAGES, TIERS, Record
from bench.result import Distribution, Hits, RunResult, Slo, TenantSummary, Verdict
from bench.statistics import percentile, supports_percentile

LAG_FLOOR_SECONDS = 0.001
LAG_OF_TTFT = 0.05
"""The client's lag may be a millisecond at its 99th percentile (the 95th or 90th of fewer requests
than that needs), or this fraction of the TTFT's median if that is more."""

LOOP_FLOOR_SECONDS = 0.005
"""Users and batches have no schedule; there the lateness of the client's event loop is judged by
its 95th percentile, with a floor above what its timers are inexact by themselves."""

HITS_OFF = 0.02
"""How far the achieved hit ratio may be from the intended one."""


@dataclass(frozen=True)
class Asked:
    """What a run was to be. ``open_loop``: requests had times of their own. ``server_hits``: hit
    ratio by the server's own counters, where its answers tell nothing. ``stopped``: why the load
    ended early. ``loop_late``: seconds by which the client's event loop was late, sampled."""

    open_loop: bool
    hit_ratio: float
    slo: Slo | None = None
    server_hits: float | None = None
    stopped: str = ""
    loop_late: Sequence[float] = ()


def summary(records: Sequence[Record], asked: Asked) -> RunResult:
    """Figures of the measured requests among ``records``; the caller adds settings."""
    measured = [record for record in records if record.phase == "measured"]
    good = [record for record in measured if record.ok]
    latencies = _latencies(good)
    hits = _hits(good, asked)
    seconds = span(measured)
    tenants = tuple(
        _tenant(name, [record for record in measured if record.tenant == name], seconds)
        for name in dict.fromkeys(record.tenant for record in measured)
    )
    metrics = {
        **_flat(latencies),
        **_rates(measured, good, seconds, asked.slo),
        **_hit_figures(hits),
        **_fairness(tenants),
    }
    stages = {
        name: told
        for name in STAGES
        if (told := distribution([r.stages[name] for r in good if name in r.stages]))
    }
    return RunResult(
        verdict=_verdict(measured, good, hits, asked),
        metrics={name: round(value, 6) for name, value in metrics.items()},
        latencies=latencies,
        hits=hits,
        stages=stages,
        tenants=tenants,
        errors=dict(Counter(_kind(record.error) for record in measured if not record.ok)),
        slo=asked.slo,
    )


def distribution(values: Sequence[float]) -> Distribution | None:
    """Of ``values`` as they are; None without any."""
    if not values:
        return None
    ordered = sorted(values)

    def at(rank: float) -> float | None:
        enough = rank == 50 or supports_percentile(len(ordered), rank)
        return round(percentile(ordered, rank), 4) if enough else None

    return Distribution(
        count=len(ordered),
        mean=round(statistics.fmean(ordered), 4),
        p50=at(50),
        p90=at(90),
        p95=at(95),
        p99=at(99),
        max=round(ordered[-1], 4),
    )


def span(measured: Sequence[Record]) -> float:
    """Seconds from the first intended send to the last answer."""
    if not measured:
        return 0.0
    return max(r.finished for r in measured) - min(r.intended for r in measured)


def _latencies(good: Sequence[Record]) -> dict[str, Distribution]:
    seconds: Mapping[str, Iterable[float]] = {
        "ttft": [record.ttft for record in good],
        "first_itl": [record.gaps[0] for record in good if len(record.tokens) > 1],
        "itl": [gap for record in good for gap in record.gaps],
        "tpot": [tpot for record in good if (tpot := record.tpot) is not None],
        "e2e": [record.e2e for record in good],
        "service_ttft": [record.service_ttft for record in good],
        "service_e2e": [record.service_e2e for record in good],
        "lag": [record.lag for record in good],
    }
    return {
        name: told
        for name, values in seconds.items()
        if (told := distribution([value * 1000 for value in values]))
    }


def _flat(latencies: Mapping[str, Distribution]) -> dict[str, float]:
    found = {}
    for name, told in latencies.items():
        for rank in ("mean", "p50", "p90", "p95", "p99", "max"):
            value = getattr(told, rank)
            if value is not None:
                found[f"{rank}_{name}_ms"] = value
    return found


def _rates(
    measured: Sequence[Record], good: Sequence[Record], seconds: float, slo: Slo | None
) -> dict[str, float]:
    span_seconds = max(seconds, 1e-9)
    figures = {
        "requests": float(len(measured)),
        "errors": float(len(measured) - len(good)),
        "duration_s": seconds,
        "request_throughput": len(good) / span_seconds,
        "input_throughput": sum(r.prompt_tokens or 0 for r in good) / span_seconds,
        "output_throughput": _output(good) / span_seconds,
    }
    if slo is not None and measured:
        kept = sum(met(record, slo) for record in measured)
        figures["goodput"] = kept / span_seconds
        figures["slo_attainment"] = kept / len(measured)
    return figures


def _output(good: Sequence[Record]) -> int:
    """Tokens of answers; where the server does not count them, each event is one."""
    return sum(record.output_tokens or len(record.tokens) for record in good)


def _hits(good: Sequence[Record], asked: Asked) -> Hits:
    achieved = _hit_ratio(good)
    if not achieved and asked.server_hits is not None:
        achieved = asked.server_hits
    elif not achieved and asked.hit_ratio > HITS_OFF:
        achieved = None  # servers that do not tell and servers that have no hits look alike
    total = sum(record.prompt_tokens or 0 for record in good)
    by_tier = {
        tier: sum(record.tiers.get(tier, 0) for record in good if record.prompt_tokens)
        for tier in TIERS
    }
    return Hits(
        intended=asked.hit_ratio,
        achieved=achieved,
        by_tier={tier: n / total for tier, n in by_tier.items() if n} if total else {},
    )


def _hit_ratio(good: Sequence[Record]) -> float | None:
    """As the answers tell it; one that tells no cached tokens beside others that do had none."""
    if all(record.cached_tokens is None for record in good):
        return None
    counted = [record for record in good if record.prompt_tokens]
    total = sum(record.prompt_tokens or 0 for record in counted)
    return sum(record.cached_tokens or 0 for record in counted) / total if total else None


def _hit_figures(hits: Hits) -> dict[str, float]:
    figures = {"hit_ratio_intended": hits.intended}
    if hits.achieved is not None:
        figures["hit_ratio"] = hits.achieved
    return {**figures, **{f"hit_ratio_{tier}": ratio for tier, ratio in hits.by_tier.items()}}


def _tenant(name: str, records: Sequence[Record], seconds: float) -> TenantSummary:
    good = [record for record in records if record.ok]
    told = distribution([record.ttft * 1000 for record in good])
    return TenantSummary(
        tenant=name,
        requests=len(records),
        errors=len(records) - len(good),
        p50_ttft_ms=told.p50 if told else None,
        p99_ttft_ms=told.p99 if told else None,
        output_tokens_per_s=_output(good) / max(seconds, 1e-9),
        hit_ratio=_hit_ratio(good),
    )


def _fairness(tenants: Sequence[TenantSummary]) -> dict[str, float]:
    """Jain's index over the tenants' median TTFT: 1 if all wait alike, 1/n if one waits alone."""
    waits = [tenant.p50_ttft_ms for tenant in tenants if tenant.p50_ttft_ms]
    if len(waits) < 2:
        return {}
    return {"fairness": sum(waits) ** 2 / (len(waits) * sum(wait**2 for wait in waits))}


def _verdict(
    measured: Sequence[Record], good: Sequence[Record], hits: Hits, asked: Asked
) -> Verdict:
    reasons = []
    if not good:
        reasons.append("no request was answered")
    if asked.stopped:
        reasons.append(asked.stopped)
    if any(EXHAUSTED in record.error for record in measured):
        reasons.append("the client had no more connections to give; --processes or fewer users")
    if good and (late := _late(measured, good, asked)):
        reasons.append(f"{late}; more --processes or less load help")
    if hits.achieved is None:
        if good and hits.intended > HITS_OFF:
            reasons.append("the server told no cached tokens, so the hit ratio is not known")
    elif abs(hits.achieved - hits.intended) > HITS_OFF:
        reasons.append(f"the hit ratio was {hits.achieved:.1%} and meant to be {hits.intended:.1%}")
    if reasons:
        return Verdict(valid=False, sentence=f"INVALID: {'; '.join(reasons)}.", reasons=(*reasons,))
    untold = "" if hits.achieved is not None else " The server told no cached tokens."
    return Verdict(valid=True, sentence=_sentence(measured, good, asked) + untold)


def _late(measured: Sequence[Record], good: Sequence[Record], asked: Asked) -> str:
    """How the client fell behind, if it did: its schedule, or, where it has none, its own loop."""
    ttft = percentile([record.service_ttft for record in good], 50)
    if asked.open_loop:
        lags, name, floor = [record.lag for record in measured], "schedule", LAG_FLOOR_SECONDS
        rank = next((r for r in (99, 95) if supports_percentile(len(measured), r)), 90)
    else:
        lags, name, floor = list(asked.loop_late), "loop", LOOP_FLOOR_SECONDS
        rank = 95
    if not lags or (lag := percentile(lags, rank)) <= (limit := max(floor, LAG_OF_TTFT * ttft)):
        return ""
    return (
        f"the client was late: {name} lag p{rank} {lag * 1000:.2f} ms, allowed are "
        f"{limit * 1000:.2f} ms"
    )


def _sentence(measured: Sequence[Record], good: Sequence[Record], asked: Asked) -> str:
    ttft = percentile([record.ttft for record in good], 50)
    failed = len(measured) - len(good)
    answered = (
        f"all {len(measured)} requests were answered, half of them"
        if not failed
        else f"{failed} of {len(measured)} requests failed, half of the others were answered"
    )
    sentence = f"VALID: {answered} with a first token within {ttft * 1000:.0f} ms"
    if asked.slo is not None:
        kept = sum(met(record, asked.slo) for record in measured)
        sentence += f", {kept} of {len(measured)} within {asked.slo.name}"
    return sentence + "."


def _kind(error: str) -> str:
    """An error's first line, short enough to count alike ones together."""
    return error.splitlines()[0][:120]
