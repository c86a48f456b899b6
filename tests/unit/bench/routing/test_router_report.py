"""What the router benchmark makes of its figures."""

from __future__ import annotations

import pytest

from bench.measures.bound import Judgement
from bench.reporting.text import render_text
from bench.routing import report
from bench.routing.measuring import DIRECT, OURS, POLICIES, Rate, Taken
from bench.routing.prompts import KINDS
from bench.routing.settings import Amounts

ROUNDS = 8
EXACT = pytest.approx


def taken() -> Taken:
    """Rounds that are all the same: kvferry twice as fast as both policies of the peer."""
    found = Taken(peer="vllm-router 0")
    for kind in KINDS:
        for system in (OURS, *POLICIES, DIRECT):
            ours = system == OURS
            rate = Rate(2000.0 if ours else 1000.0, router_us=500.0, busy=0.97, others=0.8)
            found.rates[system, kind] = [rate] * ROUNDS
            added = 0.0 if system == DIRECT else 0.002 if ours else 0.004
            found.ttfts[system, kind] = [0.001 + added] * ROUNDS
    found.novel = {OURS: [0.121] * ROUNDS, DIRECT: [0.001] * ROUNDS}
    found.tokenizing = {"new": [0.0001] * ROUNDS, "novel": [0.119] * ROUNDS}
    found.scale = {"few": [Rate(1000.0)] * ROUNDS, "many": [Rate(900.0)] * ROUNDS}
    return found


def by_name(judged: list[Judgement]) -> dict[str, Judgement]:
    return {one.bound.metric: one for one in judged}


def test_ratios_are_ours_over_theirs_without_our_tokenizing() -> None:
    judged = by_name(report.judgements(taken()))
    assert judged.keys() == {bound.metric for bound in report.BOUNDS}
    assert judged["rps_1k_vs_cache_aware"].value == EXACT(2.0)
    assert judged["added_ttft_1k_vs_cache_aware"].value == EXACT(0.5)
    assert judged["rps_220k_vs_cache_aware"].value == EXACT(0.001 / 0.0004)
    assert judged["added_ttft_220k_vs_cache_aware"].value == EXACT(0.0019 / 0.004)
    assert judged["novel_220k_over_tokenize_ms"].value == EXACT(1.0)
    assert judged["rps_1000w_vs_8w"].value == EXACT(0.9)
    assert all(one.outcome == "kept" for one in judged.values())


def test_a_run_as_it_was_meant_that_keeps_its_bounds_is_valid() -> None:
    found = taken()
    judged = report.judgements(found)
    verdict = report.verdict(judged, Amounts(rounds=ROUNDS), found)
    assert verdict.valid
    assert not verdict.reasons
    shown = render_text(report.document(judged, found, "", verdict))
    assert "vllm-router, round_robin" in shown


def test_the_worse_end_of_an_interval_decides() -> None:
    found = taken()
    found.novel[OURS] = [0.121 + 0.0016 * (number % 2) for number in range(ROUNDS)]
    novel = by_name(report.judgements(found))["novel_220k_over_tokenize_ms"]
    assert novel.value == EXACT(1.8)
    assert novel.low is not None
    assert novel.low < 1.8 < 2 < (novel.high or 0)
    assert novel.outcome == "short"


def test_without_the_peer_nothing_is_valid_and_the_rest_is_judged() -> None:
    found = taken()
    found.missing = "not there"
    judged = report.judgements(found)
    assert by_name(judged).keys() == {"novel_220k_over_tokenize_ms", "rps_1000w_vs_8w"}
    verdict = report.verdict(judged, Amounts(rounds=ROUNDS), found)
    assert not verdict.valid
    assert "not there" in verdict.reasons


def test_a_larger_fleet_that_failed_is_told_and_the_rest_is_judged() -> None:
    found = taken()
    found.unscaled = "1000 workers: proxy is not ready after 60 s:\nits log"
    judged = report.judgements(found)
    assert by_name(judged).keys() == {one.metric for one in report.BOUNDS} - {"rps_1000w_vs_8w"}
    verdict = report.verdict(judged, Amounts(rounds=ROUNDS), found)
    assert not verdict.valid
    assert "1000 workers: proxy is not ready after 60 s:" in verdict.reasons


def test_other_amounts_and_few_rounds_are_told() -> None:
    found = taken()
    verdict = report.verdict(report.judgements(found), Amounts(rounds=3, many=0), found)
    assert not verdict.valid
    assert any("many" in reason for reason in verdict.reasons)
    assert any("3 rounds" in reason for reason in verdict.reasons)


def test_a_router_that_had_to_wait_is_told_of() -> None:
    found = taken()
    found.rates[OURS, "220k"] = [Rate(2000.0, busy=0.3)] * ROUNDS
    verdict = report.verdict(report.judgements(found), Amounts(rounds=ROUNDS), found)
    assert any(OURS in reason and "30%" in reason for reason in verdict.reasons)


def test_metrics_have_intervals_and_every_systems_figures() -> None:
    found = taken()
    told = report.metrics(report.judgements(found), found)
    assert told["rps_1k_vs_cache_aware_low"] == EXACT(2.0)
    assert told["round_robin_rps_220k"] == 1000.0
    assert told["kvferry_added_ttft_220k_ms"] == EXACT(2.0)
    assert told["tokenize_novel_ms"] == EXACT(119.0)
