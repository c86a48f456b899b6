"""What the isolation benchmark makes of its figures, and its caches and conversations."""

from __future__ import annotations

import dataclasses

import pytest

from bench.isolation import report
from bench.isolation.caches import Hits, PlainLru, Tier
from bench.isolation.proxies import BUILDS, Bursts, Taken
from bench.isolation.sessions import sessions
from bench.isolation.settings import Amounts
from bench.measures.bound import Judgement
from bench.reporting.text import render_text
from bench.routing.prompts import KINDS
from bench.simulation.prompts import Prompt, prompts

ROUNDS = 8
AMOUNTS = Amounts(rounds=ROUNDS)
HITS = [
    Hits("gpu", "vllm", 100, ours=0.5, theirs=0.5, ideal=0.5),
    Hits("dram", "lmcache", 100, ours=0.45, theirs=0.4, ideal=0.5),
]


def taken(ratio: float = 1.02) -> Taken:
    """Rounds of which each costs more than the one before, whatever the build."""
    found = Taken()
    for kind in KINDS:
        for build in BUILDS:
            more = ratio if build == "isolated" else 1.0
            found.bursts[build, kind] = [Bursts(1000, more * (1 + at), 2.0) for at in range(ROUNDS)]
    return found


def by_name(judged: list[Judgement]) -> dict[str, Judgement]:
    return {one.bound.metric: one for one in judged}


def test_ratios_are_taken_within_a_round_and_hits_over_those_without_tenants() -> None:
    judged = by_name(report.judgements(taken(), HITS))
    assert judged.keys() == {one.metric for one in (*report.CPU.values(), *report.HITS.values())}
    for kind in KINDS:
        found = judged[f"proxy_cpu_ratio_{kind}"]
        assert found.value == pytest.approx(1.02)
        assert found.high == pytest.approx(1.02)
    assert judged["single_tenant_dram_hits_ratio"].value == pytest.approx(1.125)
    verdict = report.verdict([*judged.values()], AMOUNTS, taken())
    assert verdict.valid
    assert not verdict.reasons
    shown = render_text(report.document([*judged.values()], taken(), HITS, "", verdict))
    assert "lmcache: 0.4000" in shown
    told = report.metrics([*judged.values()], taken(), HITS)
    assert told["alone_proxy_us_1k"] == pytest.approx(4500)
    assert told["dram_hit_ratio_lru"] == 0.5


def test_bursts_of_a_round_count_by_what_they_served() -> None:
    found = Bursts(100, computed=0.5, seconds=1.0) + Bursts(300, computed=0.7, seconds=1.0)
    assert found.us == pytest.approx(3000)
    assert found.busy == pytest.approx(0.6)
    assert found.per_second == 200


def test_more_than_a_twentieth_is_too_much() -> None:
    judged = report.judgements(taken(1.06), HITS)
    verdict = report.verdict(judged, AMOUNTS, taken(1.06))
    assert not verdict.valid
    assert "proxy_cpu_ratio_1k, proxy_cpu_ratio_220k" in verdict.sentence


def test_a_hundredth_fewer_hits_are_too_few() -> None:
    worse = dataclasses.replace(HITS[0], ours=0.494)
    judged = report.judgements(taken(), [worse, HITS[1]])
    assert "single_tenant_gpu_hits_ratio" in report.verdict(judged, AMOUNTS, taken()).sentence


def test_other_amounts_and_few_rounds_are_told() -> None:
    few = Amounts(rounds=2, small=500)
    verdict = report.verdict(report.judgements(taken(), HITS), few, taken())
    assert not verdict.valid
    assert any("small" in reason for reason in verdict.reasons)
    assert any("too few" in reason for reason in verdict.reasons)


def test_conversations_begin_alike_go_on_and_are_the_same_again() -> None:
    made = sessions(600, seed=3)
    assert made == sessions(600, seed=3) != sessions(600, seed=4)
    assert len({one.blocks[:2] for one in made}) == 1
    seen: set[tuple[int, ...]] = set()
    later = 0
    for one in made:
        later += any(one.blocks[:end] in seen for end in range(3, len(one.blocks)))
        seen.add(one.blocks)
    assert later > 100


class Nothing(PlainLru):
    closed = 0

    def serve(self, prompt: Prompt) -> int:
        return 0

    def close(self) -> None:
        Nothing.closed += 1


def test_a_tier_is_asked_for_the_tokens_that_each_memory_finds() -> None:
    asked = prompts(sessions(50, seed=0), tenants=1)
    found = Tier("gpu", PlainLru, Nothing, "nothing").hits(asked, blocks=10_000)
    assert found.theirs == 0
    assert Nothing.closed == 1
    assert found.ours == found.ideal > 0
    least = Tier("gpu", PlainLru, Nothing, "nothing").hits(asked, blocks=20)
    assert least.ours < found.ours
