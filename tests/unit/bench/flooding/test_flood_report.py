"""What the flood benchmark makes of its figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.client import Timeline
from bench.flooding import figures, report
from bench.flooding.asking import Found, found
from bench.flooding.load import ARMS, NOISY, QUIET, Sizes, Wanted
from bench.flooding.measuring import Slice, Taken
from bench.flooding.settings import Amounts
from bench.load.schedule import Segment
from bench.reporting.text import render_text

ROUNDS = 8
AMOUNTS = Amounts(rounds=ROUNDS)
EXACT = pytest.approx


def request(tenant: str, ttft: float, cached: int) -> Found:
    return Found(
        tenant=tenant,
        at=1.0,
        ttft=ttft,
        late=0.0,
        prompt=1000,
        cached=cached,
        path="decode-only",
        tiers={"gpu": cached},
        stages={"queue": 1.0},
    )


def slices(flooded: Callable[[int], Found], rounds: int = ROUNDS, each: int = 150) -> list[Slice]:
    """Quiet requests take 0.05 to 0.0649 s and find 960 tokens where nobody floods."""
    made = []
    for number in range(rounds):
        noisy = request(NOISY, 0.2, 0)
        calm = [request(QUIET, 0.05 + at / 10_000, 960) for at in range(each)]
        made.append(Slice("inside", number, [*calm, noisy]))
        made.append(Slice("flood", number, [*(flooded(at) for at in range(each)), noisy]))
    return made


def taken(ratio: float = 1.1, cached: int = 950, rounds: int = ROUNDS, each: int = 150) -> Taken:
    def flooded(at: int) -> Found:
        return request(QUIET, ratio * (0.05 + at / 10_000), cached)

    made = Taken(Sizes(10, 10, 300, 80), miss=0.1, hit=0.02, rate=3.0)
    made.quotas = slices(flooded, rounds, each)
    made.control = slices(lambda at: request(QUIET, 0.2, 300), 1)
    return made


def test_a_run_as_it_was_meant_that_keeps_its_bounds_is_valid() -> None:
    made = taken()
    judged = report.judgements(made)
    assert [one.bound.metric for one in judged] == ["quiet_hit_ratio_drop", "quiet_p99_ratio"]
    drop, p99 = judged
    assert drop.value == EXACT(0.01) == drop.low == drop.high
    assert p99.value == EXACT(1.1)
    assert p99.low is not None
    verdict = report.verdict(judged, AMOUNTS, made)
    assert verdict.valid, verdict
    assert not verdict.reasons
    told = report.metrics(judged, made)
    assert told["control_quiet_hit_ratio_drop"] == EXACT(0.66)
    assert told["flood_quiet_hit_ratio"] == EXACT(0.95)
    assert told["quiet_p50_ratio"] == EXACT(1.1)
    shown = render_text(report.document(judged, made, "", verdict))
    assert "quiet, flood, slowest 1 %" in shown


@pytest.mark.parametrize(
    ("made", "name"),
    [(taken(ratio=1.25), "quiet_p99_ratio"), (taken(cached=930), "quiet_hit_ratio_drop")],
)
def test_more_than_that_is_short(made: Taken, name: str) -> None:
    verdict = report.verdict(report.judgements(made), AMOUNTS, made)
    assert not verdict.valid
    assert verdict.sentence == f"SHORT of its bounds: {name}."


def test_the_worse_end_of_the_interval_over_rounds_counts() -> None:
    made = taken(ratio=1.15)
    worse = [one for one in made.quotas if (one.arm, one.number) == ("flood", 3)]
    (slow,) = worse
    quiet = [request(QUIET, 0.2, 950) for _ in range(150)]
    made.quotas[made.quotas.index(slow)] = Slice("flood", 3, quiet)
    p99 = report.judgements(made)[1]
    assert p99.high is not None
    assert p99.high > 1.2
    assert p99.outcome == "short"


def test_too_few_rounds_or_requests_are_told() -> None:
    made = taken(rounds=2)
    judged = report.judgements(made)
    assert all(one.low is None for one in judged)
    reasons = report.verdict(judged, Amounts(rounds=2), made).reasons
    assert any("too few for intervals" in why for why in reasons)
    assert any("300 requests are too few for a p99" in why for why in reasons)


def test_a_flood_that_hurts_nobody_anyway_proves_nothing() -> None:
    made = taken()
    made.control = slices(lambda at: request(QUIET, 0.06, 955), 1)
    verdict = report.verdict(report.judgements(made), AMOUNTS, made)
    assert not verdict.valid
    assert "takes nothing from anybody" in verdict.reasons[0]
    made.control = []
    assert not report.verdict(report.judgements(made), AMOUNTS, made).valid
    assert "control_quiet_p99_ratio" not in report.metrics(report.judgements(made), made)


def test_another_load_is_told() -> None:
    other = Amounts(rounds=ROUNDS, utilization=0.1)
    made = taken()
    verdict = report.verdict(report.judgements(made), other, made)
    assert verdict.reasons == ("the bounds are of other amounts: utilization",)


def test_ratios_are_of_all_rounds_together() -> None:
    made = slices(lambda at: request(QUIET, 0.1, 0))
    assert figures.hit_ratio_drop(made) == EXACT(0.96)
    assert len(figures.of_tenant(made, ARMS[1])) == ROUNDS * 150
    with pytest.raises(ValueError, match="no requests"):
        figures.hit_ratio([])


def test_latency_counts_from_the_intended_send() -> None:
    wanted = Wanted(2.0, QUIET, (Segment("document", 10), Segment("question", 2)))
    told = Timeline(
        intended=100.0,
        sent=100.5,
        tokens=(101.0, 101.1),
        finished=101.1,
        status=200,
        error="",
        prompt_tokens=12,
        completion_tokens=2,
        cached_tokens=8,
        headers={"x-kvferry-path": "prefill"},
        trailer={"cached": {"gpu": 8}, "stages": {"queue": 3.0}},
    )
    made = found(wanted, told)
    assert (made.ttft, made.late, made.cached, made.path) == (1.0, 0.5, 8, "prefill")
    assert made.tiers == {"gpu": 8}
