"""Rounds, turns and what happens when something in them fails."""

import asyncio
import random

import pytest

from bench.client import Body, Timeline
from bench.counters import CacheCounters
from bench.errors import RequestFailed
from bench.headline.amounts import SPECIFIED, Amounts, BadSetting, differences, varied
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.parts.handover import after_prefill_ms
from bench.headline.phases import AnyPart, Figures, Runner, plan_rounds
from bench.headline.turn import Turn
from bench.noise import CpuWatch
from bench.processes import StartFailed
from tests.unit.bench.bench_doubles import FakePrompts, FakeSystem, timeline


class FakePart:
    def __init__(
        self,
        name: str,
        systems: str,
        every_round: bool = True,
        fails: Exception | None = None,
    ) -> None:
        self.name, self.systems, self.every_round = name, frozenset(systems), every_round
        self._fails = fails

    def seconds(self, system: str, amounts: Amounts) -> float:
        return 10.0

    async def measure(self, turn: Turn) -> str:
        if self._fails:
            raise self._fails
        return turn.system.name

    def judge(self, figures: ByRound[str]) -> Judgement:
        return Judgement({})


class Quiet(CpuWatch):
    def others(self) -> float:
        return 0.0


class Noisy(CpuWatch):
    def others(self) -> float:
        return 0.7


def run(
    parts: list[AnyPart],
    systems: str,
    rounds: int = 3,
    build: type[FakeSystem] = FakeSystem,
    watch: type[CpuWatch] = Quiet,
) -> tuple[Figures, list[FakeSystem]]:
    built: list[FakeSystem] = []

    def make(name: str, _dtype: str) -> FakeSystem:
        built.append(build(name))
        return built[-1]

    runner = Runner(make, FakePrompts(), "seed", SPECIFIED, lambda _line: None, watch)
    asyncio.run(runner.run(plan_rounds("float32", parts, systems, rounds, random.Random(1))))
    return runner.figures, built


@pytest.mark.parametrize("seed", range(20))
def test_every_round_has_every_system_once(seed: int) -> None:
    phase = plan_rounds("d", [FakePart("p", "abc")], "abc", 3, random.Random(seed))
    for number in (1, 2, 3):
        assert sorted(t.system for t in phase.turns if t.number == number) == ["a", "b", "c"]
    assert [turn.number for turn in phase.turns] == sorted(turn.number for turn in phase.turns)


def test_the_order_within_rounds_is_random() -> None:
    orders = set()
    for seed in range(30):
        phase = plan_rounds("d", [FakePart("p", "abc")], "abc", 1, random.Random(seed))
        orders.add(tuple(turn.system for turn in phase.turns))
    assert len(orders) == 6


def test_a_once_only_part_is_in_the_last_round_and_its_idle_systems_have_no_turn() -> None:
    phase = plan_rounds("d", [FakePart("p", "a", every_round=False)], "abc", 3, random.Random(1))
    assert [(turn.number, turn.system) for turn in phase.turns] == [(3, "a")]


def test_figures_are_kept_by_part_system_and_round() -> None:
    figures, built = run([FakePart("p", "ab"), FakePart("q", "b")], "ab")
    assert figures.taken["p"] == {s: {1: s, 2: s, 3: s} for s in "ab"}
    assert figures.taken["q"] == {"b": {1: "b", 2: "b", 3: "b"}}
    assert figures.complaints == []
    assert all(system.events == ["start", "stop"] for system in built)


@pytest.mark.parametrize("error", [MeasureFailed("odd"), RequestFailed("down")])
def test_a_part_that_fails_says_so_and_the_next_goes_on(error: Exception) -> None:
    figures, _ = run([FakePart("p", "a", fails=error), FakePart("q", "a")], "a", rounds=1)
    assert "p" not in figures.taken
    assert figures.taken["q"] == {"a": {1: "a"}}
    (complaint,) = figures.complaints
    assert "p on a" in complaint


def test_a_system_that_does_not_start_is_stopped_and_left_out() -> None:
    class Broken(FakeSystem):
        async def start(self) -> None:
            raise StartFailed("no memory")

    figures, built = run([FakePart("p", "a")], "a", rounds=1, build=Broken)
    assert figures.taken == {}
    assert "no memory" in figures.complaints[0]
    assert built[0].events == ["stop"]


def test_a_measurement_beside_other_work_says_so() -> None:
    figures, _ = run([FakePart("p", "a")], "a", rounds=1, watch=Noisy)
    assert figures.taken["p"] == {"a": {1: "a"}}
    assert "0.70 cores" in figures.complaints[0]


def test_prompts_are_the_same_for_every_system_of_a_round_and_new_in_the_next() -> None:
    _, built = run([FakePart("p", "ab")], "ab", rounds=2)
    by_system: dict[str, list[list[str]]] = {}
    for system in built:
        by_system.setdefault(system.name, []).append(system.prompts)
    assert by_system["a"] == by_system["b"]
    assert by_system["a"][0] != by_system["a"][1]


def test_a_prompt_counted_otherwise_by_the_server_is_an_error() -> None:
    class Miscounts(FakeSystem):
        async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
            return timeline(prompt_tokens=1)

    figures, _ = run([FakePart("p", "a")], "a", rounds=1, build=Miscounts)
    assert "counts 1 tokens" in figures.complaints[0]


def test_the_hand_over_is_the_difference_of_the_proxys_two_moments() -> None:
    assert (
        after_prefill_ms("prefill_ended;dur=100.5, first_token;dur=131.0, prefill;dur=90") == 30.5
    )
    with pytest.raises(MeasureFailed):
        after_prefill_ms("")


def test_a_varied_workload_is_told_from_the_specified_one() -> None:
    assert differences(SPECIFIED) == {}
    assert differences(varied(["prompt_tokens=500"])) == {"prompt_tokens": 500}
    for wrong in ("nope=1", "prompt_tokens=x", "prompt_tokens=-1"):
        with pytest.raises(BadSetting):
            varied([wrong])


def test_levels_survive_subtraction() -> None:
    now = CacheCounters(5, 4, 3, 2, 0.5, 9, 32)
    assert now.since(now).usage == 0.5
