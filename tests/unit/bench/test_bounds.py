"""Verdicts, and the names they are known by."""

import pytest

from bench.headline.bounds import BOUNDS, Bound, verdict

AT_MOST = Bound("m", "p", "at most", 1.0)
AT_LEAST = Bound("m", "p", "at least", 0.9)
ON_TOP = Bound("m", "p", "at most", 8.0, "base")


@pytest.mark.parametrize(
    ("bound", "metrics", "outcome"),
    [
        (AT_MOST, {"m": 1.0}, "PASS"),
        (AT_MOST, {"m": 1.001}, "FAIL"),
        (AT_LEAST, {"m": 0.9}, "PASS"),
        (AT_LEAST, {"m": 0.899}, "FAIL"),
        (AT_MOST, {}, "not measured"),
        (ON_TOP, {"m": 30.0, "base": 22.0}, "PASS"),
        (ON_TOP, {"m": 30.1, "base": 22.0}, "FAIL"),
        (ON_TOP, {"m": 30.0}, "not measured"),
        (Bound("m", "p", "told"), {"m": 5.0}, "told"),
        (Bound("m", "p", "told"), {}, "not measured"),
    ],
)
def test_a_bound_is_kept_broken_or_not_measured(
    bound: Bound, metrics: dict[str, float], outcome: str
) -> None:
    assert verdict(bound, metrics).outcome == outcome


def test_every_promised_metric_has_its_bound() -> None:
    assert {bound.metric for bound in BOUNDS} >= {
        "miss_ttft_vs_plain",
        "nixl_miss_ttft_vs_plain",
        "hit_ttft_vs_nixl",
        "first_token_after_prefill_ms",
        "decode_step_ms",
        "dram_ttft_vs_miss",
        "dram_cached_fraction",
        "greedy_equal_fp32",
        "greedy_equal_bf16",
        "itl_p99_vs_aggregated",
        "ttft_p50_vs_aggregated",
        "soak_errors",
        "soak_leaked_blocks",
    }
