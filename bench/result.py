"""The outcome of a benchmark command, as ``result.json`` holds it.

Every command's JSON has an object ``metrics`` of plain names and numbers; a run's names follow
vLLM's benchmark (``mean_ttft_ms``, ``p99_itl_ms``), so scripts written for that read these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

SCHEMA = 1


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds. A percentile is None where fewer than ten samples lie beyond it."""

    count: int
    mean: float
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one request, milliseconds; None is no limit."""

    name: str = ""
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


class Hits(msgspec.Struct, frozen=True, kw_only=True):
    """Fractions of all prompt tokens. ``achieved`` is None where the server tells nothing."""

    intended: float
    achieved: float | None
    by_tier: Mapping[str, float] = msgspec.field(default_factory=dict)


class TenantSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's share of a run. ``p50_ttft_ms``: None without enough samples."""

    tenant: str
    requests: int
    errors: int
    p50_ttft_ms: float | None
    p99_ttft_ms: float | None
    output_tokens_per_s: float
    hit_ratio: float | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the figures mean what they say, in one sentence, and why not if they do not."""

    valid: bool
    sentence: str
    reasons: tuple[str, ...] = ()


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``latencies``: by name (ttft, first_itl, itl, tpot, e2e, service_ttft, service_e2e,
    lag); ``stages``: by name of ``records.STAGES``; ``errors``: how often each came."""

    schema: int = SCHEMA
    command: str = "run"
    verdict: Verdict
    metrics: Mapping[str, float]
    latencies: Mapping[str, Distribution]
    hits: Hits
    stages: Mapping[str, Distribution] = msgspec.field(default_factory=dict)
    tenants: tuple[TenantSummary, ...] = ()
    errors: Mapping[str, int] = msgspec.field(default_factory=dict)
    slo: Slo | None = None
    schedule_sha256: str = ""
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    environment: Mapping[str, Any] = msgspec.field(default_factory=dict)


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command other than a run found. ``detail``: whatever explains its metrics."""

    schema: int = SCHEMA
    command: str
    verdict: Verdict
    metrics: Mapping[str, float]
    detail: Mapping[str, Any] = msgspec.field(default_factory=dict)
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    environment: Mapping[str, Any] = msgspec.field(default_factory=dict)
