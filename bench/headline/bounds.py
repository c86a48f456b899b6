"""What has to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TOTAL_MINUTES = 25.0


@dataclass(frozen=True)
class Bound:
    """``metric`` is ``at most`` or ``at least`` the limit.

    ``over`` names a metric the limit is counted on top of (same unit). ``part`` measures it. The
    metric may be told without being bound: then ``limit`` is None.
    """

    metric: str
    part: str
    kind: Literal["at most", "at least", "told"]
    limit: float | None = None
    over: str | None = None


BOUNDS = (
    Bound("miss_ttft_vs_plain", "miss", "at most", 1.08),
    Bound("nixl_miss_ttft_vs_plain", "miss", "told"),
    Bound("hit_ttft_vs_nixl", "hit", "at most", 0.6),
    Bound("remote_hit_vs_local_hit", "hit", "at most", 1.6),
    Bound("first_token_after_prefill_ms", "handover", "at most", 4.0, "decode_step_ms"),
    Bound("decode_step_ms", "handover", "told"),
    Bound("dram_ttft_vs_miss", "dram", "at most", 0.25),
    Bound("dram_cached_fraction", "dram", "at least", 0.9),
    Bound("greedy_equal_fp32", "greedy", "at least", 1.0),
    Bound("greedy_equal_bf16", "greedy", "at least", 0.98),
    Bound("itl_p99_vs_aggregated", "mixed", "at most", 0.25),
    Bound("ttft_p50_vs_aggregated", "mixed", "at most", 1.3),
    *(
        Bound(f"reuse_{figure}_{system}_vs_plain", "reuse", "told")
        for figure in ("ttft_p50", "itl_p99")
        for system in ("nixl", "lmcache", "kvferry")
    ),
    *(
        Bound(f"reuse_hit_ratio_{system}", "reuse", "told")
        for system in ("plain", "nixl", "lmcache", "kvferry")
    ),
    Bound("soak_errors", "soak", "at most", 0.0),
    Bound("soak_leaked_blocks", "soak", "at most", 0.0),
    Bound("soak_rss_growth", "soak", "at most", 0.02),
)

Outcome = Literal["PASS", "FAIL", "told", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """A bound beside the measured value; ``limit`` with what it is on top of added."""

    metric: str
    value: float | None
    kind: str
    limit: float | None
    outcome: Outcome


def verdict(bound: Bound, metrics: Mapping[str, float]) -> Verdict:
    """Whether ``metrics`` keep to ``bound``. A missing value never passes."""
    value = metrics.get(bound.metric)
    limit = bound.limit
    if bound.over is not None and limit is not None:
        base = metrics.get(bound.over)
        limit = None if base is None else base + limit
    outcome: Outcome
    if value is None or (limit is None and bound.kind != "told"):
        outcome = "not measured"
    elif limit is None:
        outcome = "told"
    else:
        kept = value <= limit if bound.kind == "at most" else value >= limit
        outcome = "PASS" if kept else "FAIL"
    return Verdict(bound.metric, value, bound.kind, limit, outcome)
