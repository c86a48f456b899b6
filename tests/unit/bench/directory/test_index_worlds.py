"""What the index benchmark fills a directory with is what it says, and found again."""

from __future__ import annotations

import pytest

from bench.directory import report
from bench.directory.intake import BURST, Intake
from bench.directory.measuring import Taken, measure
from bench.directory.world import LENGTH, SHARED, Shape, World, worker_name
from bench.measures.bound import Bound, Judgement
from kvstore.index import Held

SHAPE = Shape(30_000, workers=4, tenants=7)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SHAPE)


def test_it_has_about_as_many_entries_as_were_asked_for(world: World) -> None:
    assert world.entries == pytest.approx(SHAPE.entries, rel=0.1)
    holders = [len(SHAPE.homes(one)) for one in range(SHAPE.conversations)]
    assert set(holders) == {1, 2}


@pytest.mark.parametrize(
    "shape", [report.SMALL, report.MANY_WORKERS, report.ONE_TENANT, report.MANY_TENANTS]
)
def test_the_worlds_that_are_compared_are_what_they_are_called(shape: Shape) -> None:
    count = shape.conversations
    assert count >= shape.tenants  # each of which has one
    twice = sum(len(shape.homes(one)) == 2 for one in range(count))
    assert twice / count == pytest.approx(1 / 8, rel=0.2)
    holes = sum(shape.has_hole(one) for one in range(count))
    assert holes / count == pytest.approx(1 / 16, rel=0.2)


def test_a_conversation_is_found_where_it_is_at_home(world: World) -> None:
    for conversation in range(SHAPE.conversations):
        names = world.prompt(conversation)
        assert len(set(names)) == LENGTH
        held = world.directory.held(names)
        whole = SHARED + LENGTH // 2 if SHAPE.has_hole(conversation) else LENGTH
        for worker in range(SHAPE.workers):
            found = held[worker_name(worker)]
            if worker in SHAPE.homes(conversation):
                assert found == Held(whole, 0)
            else:
                assert found.gpu in {0, SHARED}  # its tenant's system prompt, if anything


def test_tenants_share_nothing(world: World) -> None:
    prompts = [set(world.prompt(one)) for one in (0, SHAPE.tenants, 1)]
    assert len(prompts[0] & prompts[1]) == SHARED
    assert not prompts[0] & prompts[2]


@pytest.mark.parametrize("burst", [BURST, 1])
def test_intake_stores_and_evicts_by_turns(burst: int) -> None:
    intake = Intake()
    held = intake._world.directory.blocks(worker_name(0), "gpu")
    for _ in range(30 if burst == BURST else 1):  # until what was there at first has gone
        assert intake.per_second(burst) > 0
        # Some of what is evicted was not there: conversations have holes.
        now = intake._world.directory.blocks(worker_name(0), "gpu")
        assert now == pytest.approx(held, rel=1e-3)


def test_every_bound_is_judged_from_a_run() -> None:
    told: list[str] = []
    shapes = [report.SMALL, report.MANY_WORKERS, report.ONE_TENANT, report.MANY_TENANTS]
    taken = measure([Shape(20_000)], 1, 0, told.append)
    assert told == ["filling 2e+04 entries, 8 workers, 1 tenant", "round 1 of 1"]
    (small,) = taken.lookups
    for shape in shapes:
        taken.lookups[shape], taken.each[shape] = taken.lookups[small], taken.each[small]
        taken.memory[shape], taken.entries[shape] = taken.memory[small], taken.entries[small]
    judged = report.judgements(taken, small)
    assert {one.bound.metric for one in judged} == {bound.metric for bound in report.BOUNDS}
    assert set(report.metrics(judged, taken)) >= {bound.metric for bound in report.BOUNDS}
    found = report.verdict(judged, small, 1, 0.0)
    assert not found.valid
    assert len(found.reasons) == 2
    assert report.document(judged, taken, "", found).sections


def test_the_worse_end_of_an_interval_decides() -> None:
    most, least = Bound("a", "at most", 2.0), Bound("b", "at least", 10.0)
    assert Judgement(most, 1.9, 1.8, 2.1).outcome == "short"
    assert Judgement(most, 1.9).outcome == "kept"
    assert Judgement(least, 11.0, 9.0, 12.0).outcome == "short"
    assert Judgement(least, 11.0, 10.5, 12.0).outcome == "kept"


def test_ratios_are_of_the_same_round() -> None:
    taken = Taken(
        lookups={
            report.SMALL: [1.0, 2.0] * 4,
            report.MANY_WORKERS: [1.4, 2.8] * 4,
            report.ONE_TENANT: [2.0, 4.0] * 4,
            report.MANY_TENANTS: [2.2, 4.4] * 4,
            Shape(report.LARGE): [1.5, 3.0] * 4,
        },
        each={report.SMALL: [2.0] * 8, report.MANY_WORKERS: [6.0] * 8},
        intake={BURST: [2e6] * 8, 1: [1e5] * 8},
        memory={Shape(report.LARGE): 2_000_000_000},
        entries={Shape(report.LARGE): 100_000_000},
    )
    judged = report.judgements(taken, Shape(report.LARGE))
    values = {one.bound.metric: one.value for one in judged}
    assert values == pytest.approx(
        {
            "lookup_1e8_vs_1e6": 1.5,
            "lookup_1000w_vs_8w": 1.4,
            "lookup_10000t_vs_1t": 1.1,
            "bytes_per_entry": 20.0,
            "events_per_s": 2e6,
        }
    )
    assert report.verdict(judged, Shape(report.LARGE), 8, 0.0).valid
    assert report.metrics(judged, taken)["lookup_each_1000w_vs_8w"] == 3.0
