"""Figures of a run."""

import pytest

from bench.measures.summary import Asked, distribution, span, summary
from bench.records import Record
from bench.result import RunResult, Slo
from tests.unit.bench.measures.records import failed, record

PLAIN = Asked(open_loop=True, hit_ratio=0.0)
TIGHT = Slo(name="tight", ttft_ms=60)


def summed(*records: Record, asked: Asked = PLAIN) -> RunResult:
    return summary(records, asked)


def test_one_request_gives_every_latency() -> None:
    late = record(intended=10.0, sent=10.002, ttft=0.05, gap=0.01, events=5)
    result = summed(late)
    means = {name: told.mean for name, told in result.latencies.items()}
    assert means == pytest.approx(
        {
            "ttft": 52,
            "first_itl": 10,
            "itl": 10,
            "tpot": 10,
            "e2e": 92,
            "service_ttft": 50,
            "service_e2e": 90,
            "lag": 2,
        }
    )
    counts = {name: told.count for name, told in result.latencies.items()}
    assert counts == dict.fromkeys(counts, 1) | {"itl": 4}


def test_metrics_have_the_names_that_scripts_for_vllms_benchmark_read() -> None:
    records = [record(number, ttft=0.05 + number / 1e5) for number in range(1000)]
    metrics = summed(*records).metrics
    for name in ("ttft", "tpot", "itl", "e2e"):
        for rank in ("mean", "p50", "p90", "p95", "p99", "max"):
            assert metrics[f"{rank}_{name}_ms"] > 0
    assert metrics["p50_ttft_ms"] == pytest.approx(54.995)
    assert metrics["p99_ttft_ms"] == pytest.approx(59.8901)
    assert metrics["max_ttft_ms"] == pytest.approx(59.99)


def test_the_first_gap_is_told_apart_from_the_others() -> None:
    stalled = record(tokens=(0.05, 0.45, 0.46, 0.47), finished=0.47)
    latencies = summed(stalled).latencies
    assert latencies["first_itl"].mean == pytest.approx(400)
    assert latencies["itl"].mean == pytest.approx(140)


def test_an_answer_of_one_token_has_no_time_between_tokens() -> None:
    result = summed(record(events=1), record(1, events=1))
    assert set(result.latencies) == {"ttft", "e2e", "service_ttft", "service_e2e", "lag"}
    assert "mean_tpot_ms" not in result.metrics
    assert result.verdict.valid


def test_failed_requests_are_in_no_latency_but_in_the_slos_denominator() -> None:
    good = [record(number) for number in range(3)]
    asked = Asked(open_loop=True, hit_ratio=0.0, slo=TIGHT)
    result = summed(*good, failed(3, sent=3.0), asked=asked)
    assert result.latencies == summed(*good).latencies
    metrics = result.metrics
    assert (metrics["requests"], metrics["errors"]) == (4, 1)
    assert metrics["slo_attainment"] == 0.75
    # From the first intended send to the last end, the failed one's.
    assert metrics["duration_s"] == 4.0
    assert metrics["goodput"] == metrics["request_throughput"] == 0.75
    assert metrics["output_throughput"] == pytest.approx(9 / 4)
    assert metrics["input_throughput"] == pytest.approx(300 / 4)
    assert "1 of 4 requests failed, half of the others" in result.verdict.sentence
    assert "3 of 4 within tight" in result.verdict.sentence


def test_a_request_that_was_too_slow_is_no_goodput() -> None:
    asked = Asked(open_loop=True, hit_ratio=0.0, slo=TIGHT)
    result = summed(record(0), record(1, ttft=0.07), asked=asked)
    assert result.metrics["slo_attainment"] == 0.5
    assert result.metrics["goodput"] == pytest.approx(0.5 * result.metrics["request_throughput"])
    assert result.slo == TIGHT
    assert "goodput" not in summed(record()).metrics


def test_errors_are_counted_by_their_first_line() -> None:
    result = summed(
        *(failed(number, f"broke off\n{number}") for number in range(3)),
        failed(3, "x" * 500),
        record(4),
    )
    assert result.errors == {"broke off": 3, "x" * 120: 1}


def test_only_measured_requests_count() -> None:
    ahead = (record(0, phase="warm", ttft=9.0), failed(1, phase="prime"))
    measured = (record(100), record(101))
    assert summed(*ahead, *measured) == summed(*measured)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (1, {50}),
        (99, {50}),
        (100, {50, 90}),
        (199, {50, 90}),
        (200, {50, 90, 95}),
        (999, {50, 90, 95}),
        (1000, {50, 90, 95, 99}),
    ],
)
def test_a_percentile_is_withheld_where_fewer_than_ten_lie_beyond(
    count: int, told: set[int]
) -> None:
    found = distribution([float(value) for value in range(count)])
    assert found is not None
    values = {50: found.p50, 90: found.p90, 95: found.p95, 99: found.p99}
    assert {rank for rank, value in values.items() if value is not None} == told
    for rank in told:
        assert values[rank] == pytest.approx((count - 1) * rank / 100, abs=1e-4)
    assert (found.count, found.mean, found.max) == (count, (count - 1) / 2, count - 1)
    metrics = summed(*(record(number) for number in range(count))).metrics
    assert {rank for rank in values if f"p{rank}_ttft_ms" in metrics} == told


def test_a_run_lasts_from_the_first_intended_send_to_the_last_end() -> None:
    late = record(intended=5.0, sent=7.0, finished=9.0)
    assert span([late, record(6, finished=8.0), failed(3, finished=9.5)]) == 6.5
    assert span([late]) == 4.0


def test_nothing_has_no_distribution_and_no_span() -> None:
    assert distribution([]) is None
    assert span([]) == 0.0


def test_a_run_without_requests_is_invalid_and_nothing_worse() -> None:
    for asked in (PLAIN, Asked(open_loop=True, hit_ratio=0.5, slo=TIGHT)):
        result = summed(asked=asked)
        assert result.verdict.reasons == ("no request was answered",)
        assert result.latencies == {}
        assert result.metrics["requests"] == 0
        assert result.metrics["request_throughput"] == 0


def test_a_run_whose_requests_all_failed_is_invalid() -> None:
    asked = Asked(open_loop=True, hit_ratio=0.0, slo=TIGHT)
    result = summed(failed(0), failed(1), asked=asked)
    assert result.verdict.sentence == "INVALID: no request was answered."
    assert result.metrics["slo_attainment"] == 0
    assert result.metrics["errors"] == 2


def test_stages_and_tiers_are_those_that_were_told() -> None:
    result = summed(
        record(0, stages={"route": 1.0, "prefill": 30.0}, tiers={"gpu": 20, "dram": 10}),
        record(1, stages={"route": 3.0}, tiers={"gpu": 40}),
        record(2),
        failed(3, stages={"route": 99.0}),
    )
    assert {name: (told.count, told.mean) for name, told in result.stages.items()} == {
        "route": (2, 2.0),
        "prefill": (1, 30.0),
    }
    assert result.hits.by_tier == {"gpu": 60 / 300, "dram": 10 / 300}
    assert result.metrics["hit_ratio_gpu"] == pytest.approx(0.2)


def test_each_tenant_has_its_own_figures() -> None:
    result = summed(
        record(0, tenant="a", cached_tokens=50),
        record(1, tenant="b", cached_tokens=0, ttft=0.2),
        record(2, tenant="a"),
        failed(3, tenant="b", finished=4.0),
    )
    a, b = result.tenants
    assert (a.tenant, a.requests, a.errors) == ("a", 2, 0)
    assert (b.tenant, b.requests, b.errors) == ("b", 2, 1)
    assert a.p50_ttft_ms == pytest.approx(50)
    assert b.p50_ttft_ms == pytest.approx(200)
    assert (a.hit_ratio, b.hit_ratio) == (0.25, 0.0)
    assert a.output_tokens_per_s == pytest.approx(6 / 4)
    assert b.output_tokens_per_s == pytest.approx(3 / 4)


def test_tenants_and_all_together_count_output_alike() -> None:
    # A server that counts nothing: each event is one token.
    records = [record(number, tenant=f"{number % 3}", output_tokens=None) for number in range(9)]
    result = summed(*records)
    assert sum(tenant.output_tokens_per_s for tenant in result.tenants) == pytest.approx(
        result.metrics["output_throughput"], abs=1e-5
    )
    assert result.metrics["output_throughput"] > 0


def test_a_tenant_of_whom_nothing_is_told_has_no_hit_ratio() -> None:
    (tenant,) = summed(record(0, cached_tokens=None)).tenants
    assert tenant.hit_ratio is None
    (nobody,) = summed(failed(0)).tenants
    assert (nobody.p50_ttft_ms, nobody.p99_ttft_ms, nobody.hit_ratio) == (None, None, None)


def test_fairness_is_one_where_all_wait_alike_and_falls_where_one_waits_alone() -> None:
    alike = summed(*(record(number, tenant=f"{number}") for number in range(4)))
    assert alike.metrics["fairness"] == pytest.approx(1.0)
    alone = summed(
        *(record(number, tenant=f"{number}", ttft=100.0 if not number else 1e-3, events=1)
          for number in range(4))
    )  # fmt: skip
    assert alone.metrics["fairness"] == pytest.approx(1 / 4, abs=0.001)
    two = summed(record(0, tenant="a", ttft=0.1), record(1, tenant="b", ttft=0.3))
    assert two.metrics["fairness"] == pytest.approx(0.4**2 / (2 * (0.01 + 0.09)))


def test_fairness_takes_two_tenants_that_were_answered() -> None:
    assert "fairness" not in summed(record(0, tenant="a")).metrics
    assert "fairness" not in summed(record(0, tenant="a"), failed(1, tenant="b")).metrics
