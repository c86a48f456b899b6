"""Limits on latency: MLPerf's and your own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.load.errors import BadLoad
from bench.records import Record
from bench.result import Slo

PRESETS: Mapping[str, tuple[float, float]] = {
    "mlperf-llama3.1-8b": (2000, 100),
    "mlperf-llama3.1-8b-interactive": (500, 30),
    "mlperf-llama2-70b": (2000, 200),
    "mlperf-llama2-70b-interactive": (450, 40),
    "mlperf-llama3.1-405b": (6000, 175),
    "mlperf-llama3.1-405b-interactive": (4500, 80),
    "mlperf-mixtral-8x7b": (2000, 200),
    "mlperf-deepseek-r1": (2000, 80),
    "mlperf-deepseek-r1-interactive": (1500, 15),
    "mlperf-gpt-oss-120b": (3000, 80),
    "mlperf-gpt-oss-120b-interactive": (2000, 20),
}
"""TTFT and TPOT in milliseconds, both at the 99th percentile (mlcommons/inference_policies,
inference_rules.adoc)."""

_PART = re.compile(r"(ttft|tpot|e2e)=(\d{1,9}(?:\.\d{1,9})?)")


def parse(text: str) -> Slo:
    """A preset's name, or ``ttft=500,tpot=30,e2e=9000`` (milliseconds, any of them).

    Raises BadLoad.
    """
    if text in PRESETS:
        ttft, tpot = PRESETS[text]
        return Slo(name=text, ttft_ms=ttft, tpot_ms=tpot)
    limits: dict[str, float] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise BadLoad(
                f"{text!r} is no SLO: give ttft=500,tpot=30 (ms) or one of {', '.join(PRESETS)}"
            )
        if match[1] in limits:
            raise BadLoad(f"{text!r} gives {match[1]} twice")
        limits[match[1]] = float(match[2])
    return Slo(
        name=text,
        ttft_ms=limits.get("ttft"),
        tpot_ms=limits.get("tpot"),
        e2e_ms=limits.get("e2e"),
    )


def met(record: Record, slo: Slo) -> bool:
    """Whether a request kept every limit. One that failed never does."""
    if not record.ok:
        return False
    kept = (
        (slo.ttft_ms, record.ttft),
        (slo.tpot_ms, record.tpot),
        (slo.e2e_ms, record.e2e),
    )
    return all(
        limit is None or seconds is None or seconds * 1000 <= limit for limit, seconds in kept
    )
