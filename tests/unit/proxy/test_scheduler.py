"""What waits is given to somebody, once, in time; whatever workers do meanwhile."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.curves import PrefillCurve, Sample
from kvstore.index import Directory
from kvstore.messages import Snapshot, Tier
from proxy import hints
from proxy.pace import Pace, Prediction
from proxy.prompts import Layout, Prompt, Waiting
from proxy.scheduler import Scheduler
from proxy.weights import Weights
from proxy.workload import Given
from tests.support.announcing import announce

CURVE = PrefillCurve(0.0, 0.001, 0.0)
"""A block of 100 tokens takes 0.1 s."""

BLOCK = 100
LAYOUT = Layout("m", "", BLOCK)
WEIGHTS = Weights()


def names(blocks: Sequence[int], tenant: str = "a") -> list[bytes]:
    """Chained, as block hashes are."""
    return [
        hashlib.sha256(f"{tenant}{list(blocks[: at + 1])}".encode()).digest()[:16]
        for at in range(len(blocks))
    ]


def prompt(blocks: Sequence[int], tenant: str = "a", tail: int = 10) -> Prompt:
    return Prompt(tenant, len(blocks) * BLOCK + tail, names(blocks, tenant))


class Fleet:
    """Workers as their feeds tell of them."""

    def __init__(self, *workers: str) -> None:
        self.directory = Directory(lease_seconds=1e9)
        self.pace = Pace(CURVE)
        self.scheduler = Scheduler(self.directory, LAYOUT, self.pace, WEIGHTS)
        self.changes = itertools.count()
        self.under_way: list[Given] = []
        for worker in workers:
            self.holds(worker, [])

    def holds(
        self, worker: str, held: Sequence[bytes], generation: str = "g0", tier: Tier = "gpu"
    ) -> None:
        seq = next(self.changes)
        self.told(worker, generation=generation, seq=seq)
        self.directory.apply(Snapshot(worker, generation, seq, 0, 1, tier, b"".join(held)), 0.0)

    def told(self, worker: str, **fields: object) -> None:
        message = msgspec.structs.replace(announce(worker), block_size=BLOCK, **fields)
        self.directory.apply(message, 0.0)

    def enter(
        self,
        blocks: Sequence[int],
        now: float = 0.0,
        tenant: str = "a",
        hint: int | None = None,
    ) -> Waiting:
        return self.scheduler.enter(replace(prompt(blocks, tenant), hint=hint), now)

    def decide(self, now: float = 0.0) -> list[tuple[str, int]]:
        """Who is given something, thought to hold how much of it."""
        found = [given for _, given in self.scheduler.decide(now)]
        self.under_way += found
        return [(given.worker.worker, given.held) for given in found]

    def over(self, now: float) -> None:
        """All is computed that was given."""
        for given in self.under_way:
            self.scheduler.ended(given, now, computed=True)
        self.under_way.clear()


def hint_of(worker: str, *others: str) -> int:
    """One that belongs to ``worker``."""
    known = hints.numbers([worker, *others])
    return next(at for at in itertools.count() if hints.meant(at, known) == 0)


def test_cold_prompts_with_one_hint_meet() -> None:
    for meant in ("w0", "w1", "w2"):
        fleet = Fleet("w0", "w1", "w2")
        hint = hint_of(meant, *{"w0", "w1", "w2"} - {meant})
        for at in range(3):
            fleet.enter([at], hint=hint)
            ((worker, _),) = given = fleet.decide(now=float(at))
            assert worker == meant, given
            fleet.over(now=at + 0.1)


def test_what_is_held_beats_a_hint() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w0", names([1]))
    fleet.enter([1, 2, 3, 4], hint=hint_of("w1", "w0"))
    assert fleet.decide() == [("w0", 100)]


def test_what_another_is_about_to_hold_beats_a_hint() -> None:
    fleet = Fleet("w0", "w1")
    fleet.enter([1], hint=hint_of("w0", "w1"))
    assert fleet.decide() == [("w0", 0)]
    fleet.over(now=0.1)
    fleet.enter([1, 2], now=0.1, hint=hint_of("w1", "w0"))
    assert fleet.decide(now=0.1) == [("w0", 100)]


def test_what_is_queued_beats_a_hint() -> None:
    fleet = Fleet("w0", "w1")
    hint = hint_of("w0", "w1")
    fleet.enter([1], hint=hint)
    fleet.enter([2], hint=hint)
    assert sorted(fleet.decide()) == [("w0", 0), ("w1", 0)]


def test_candidates_are_told_in_the_order_that_the_hint_makes() -> None:
    fleet = Fleet("w0", "w1")
    hint = hint_of("w1", "w0")
    asked = replace(prompt([1]), hint=hint)
    assert fleet.scheduler.candidates(asked, 0.0)[0].worker.worker == "w1"


def test_a_prompt_goes_where_its_beginning_is_held() -> None:
    fleet = Fleet("w0", "w1", "w2")
    fleet.holds("w1", names([1, 2, 3]))
    fleet.enter([1, 2, 3, 4])
    assert fleet.decide() == [("w1", 300)]


def test_the_last_token_is_computed_even_where_all_is_held() -> None:
    fleet = Fleet("w0")
    fleet.holds("w0", names([1, 2]))
    fleet.scheduler.enter(prompt([1, 2], tail=0), 0.0)
    assert fleet.decide() == [("w0", 100)]  # a whole block with it, as engines have it


def test_what_has_to_be_loaded_is_worth_less_than_what_lies_in_the_engine() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w0", names([1, 2, 3]), tier="dram")
    fleet.enter([1, 2, 3, 4])
    ((_, given),) = fleet.scheduler.decide(0.0)
    assert (given.worker.worker, given.held, given.loads) == ("w0", 300, 300)
    assert given.seconds == pytest.approx(0.11 + given.loading)
    assert given.loading > 0
    fleet.scheduler.ended(given, 0.0, computed=False)
    fleet.holds("w1", names([1, 2, 3]))
    fleet.enter([1, 2, 3, 4], 1.0)
    assert [(one.worker.worker, one.loads) for _, one in fleet.scheduler.decide(1.0)] == [("w1", 0)]


def test_where_loading_takes_longer_than_computing_it_is_computed_elsewhere() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w0", names([1, 2, 3]), tier="dram")
    slow = Prediction("disaggregated", 410, 300, 0.0, 0.0, 0.1, 0.0, loads=300)
    none = Prediction("disaggregated", 410, 0, 0.0, 0.0, 0.1, 0.0)
    for _ in range(20):
        fleet.pace.learn(slow, slow.path, {"queue": 3000.0, "prefill": 100.0}, 300)
        fleet.pace.learn(none, none.path, {"queue": 10.0, "prefill": 100.0}, 0)
    fleet.enter([1, 2, 3, 4])
    assert fleet.decide() == [("w1", 0)]


def test_what_waited_is_looked_up_as_it_is_given() -> None:
    fleet = Fleet("w0")
    fleet.enter([1])
    ((_, first),) = fleet.scheduler.decide(0.0)
    fleet.holds("w0", names([5, 6, 7]))
    fleet.enter([5, 6, 7], 0.1)
    fleet.scheduler.ended(first, 0.11, computed=True)
    fleet.holds("w0", names([5]))
    assert fleet.decide(0.11) == [("w0", 100)]


def test_what_is_given_at_once_lies_before_what_is_given_next() -> None:
    fleet = Fleet("w0")
    fleet.enter([], tenant="a")
    fleet.enter([], tenant="b")
    works = [given.work for _, given in fleet.scheduler.decide(0.0)]
    assert works == [0.0, pytest.approx(0.01)]


def test_what_is_being_computed_counts_as_held_there() -> None:
    fleet = Fleet("w0", "w1")
    fleet.enter([1, 2])
    ((first, _),) = fleet.decide()
    fleet.enter([1, 2, 3], 0.15)
    assert fleet.decide(0.15) == []  # meant for the same worker, which has no room yet
    assert fleet.decide(0.2) == [(first, 200)]


def test_what_failed_is_not_held() -> None:
    fleet = Fleet("w0", "w1")
    fleet.enter([1, 2])
    ((_, given),) = fleet.scheduler.decide(0.0)
    fleet.scheduler.ended(given, 0.1, computed=False)
    fleet.enter([1, 2, 3], 0.1)
    assert [held for _, held in fleet.decide(0.1)] == [0]


@pytest.mark.parametrize(("after", "held"), [(0.5, 200), (1.5, 0)])
def test_what_was_computed_is_held_until_the_feed_had_time_to_say_so(
    after: float, held: int
) -> None:
    fleet = Fleet("w0")
    fleet.enter([1, 2])
    ((_, given),) = fleet.scheduler.decide(0.0)
    fleet.scheduler.ended(given, 0.2, computed=True)
    now = 0.2 + after * WEIGHTS.lingers
    fleet.enter([1, 2, 3], now)
    assert fleet.decide(now) == [("w0", held)]


def test_another_tenants_prompt_is_not_the_same() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w1", names([1, 2, 3], "a"))
    fleet.enter([1, 2, 3], tenant="b")
    assert [held for _, held in fleet.decide()] == [0]


def test_for_one_that_waits_holdings_are_looked_up_again() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w0", names(list(range(9))))
    fleet.enter([*range(9), 70, 71, 72])
    assert fleet.decide() == [("w0", 900)]
    fleet.enter([*range(9), 50, 51])
    assert fleet.decide(0.001) == []  # waits for the worker that holds it
    fleet.holds("w1", names([*range(9), 50, 51]))
    assert fleet.decide(0.002) == []
    assert fleet.decide(0.005 + WEIGHTS.stale) == [("w1", 1100)]


def test_draining_and_lost_workers_are_given_nothing() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w0", names([1, 2, 3]))
    fleet.told("w0", state="draining")
    fleet.enter([1, 2, 3])
    assert fleet.decide() == [("w1", 0)]
    fleet.directory.expire(1e12)
    fleet.enter([1, 2, 3], 10.0)
    assert fleet.decide(10.0) == []


def test_nobody_is_ready_and_then_somebody_is() -> None:
    fleet = Fleet()
    fleet.enter([1, 2])
    assert fleet.decide() == []
    fleet.holds("w0", [])
    assert fleet.decide(1.0) == [("w0", 0)]


def test_one_that_came_back_elsewhere_in_the_directory_is_still_itself() -> None:
    """Between two decisions both leave and return in another order, with the same generation."""
    fleet = Fleet("w0", "w1")
    fleet.enter([9])
    fleet.decide()
    fleet.directory.expire(1e12)
    fleet.holds("w1", names([1, 2, 3]))
    fleet.holds("w0", [])
    fleet.enter([1, 2, 3], 1.0)
    assert fleet.decide(1.0) == [("w1", 300)]


def test_one_that_was_withdrawn_goes_nowhere() -> None:
    fleet = Fleet("w0")
    waiting = fleet.enter([1])
    fleet.scheduler.withdraw(waiting)
    fleet.scheduler.withdraw(waiting)
    assert fleet.decide() == []


def test_it_tells_when_a_worker_can_take_the_next() -> None:
    fleet = Fleet("w0")
    fleet.enter([1, 2])
    fleet.enter([3, 4])
    assert fleet.scheduler.wakes(0.0) is None
    fleet.decide()
    wakes = fleet.scheduler.wakes(0.0)
    assert wakes is not None
    assert wakes == pytest.approx(0.21 - WEIGHTS.lead, abs=0.001)
    assert fleet.decide(wakes - 0.001) == []
    assert fleet.decide(wakes) == [("w0", 0)]
    assert fleet.scheduler.wakes(0.0) is None


def test_a_backlog_for_one_worker_does_not_hide_what_others_could_do() -> None:
    """However many wait for the holder of a hot prefix."""
    fleet = Fleet("w0", "w1")
    hot = list(range(20))
    fleet.holds("w0", names(hot))
    for _ in range(2 * WEIGHTS.fresh):
        fleet.enter(hot)
    fleet.enter([7] * 30, now=1.0)
    assert "w1" in [worker for worker, _ in fleet.decide(1.0)]


def test_a_worker_that_is_late_is_given_nothing_and_costs_more_and_more() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w0", names([1, 2, 3, 4]))
    fleet.enter([1, 2, 3, 4, 5])
    assert fleet.decide() == [("w0", 400)]
    fleet.enter([1, 2, 3, 4, 6], 0.15)
    assert fleet.decide(0.15) == []  # it should have done at 0.11
    assert fleet.decide(0.4) == []
    assert fleet.decide(30.0) == [("w1", 0)]


def test_one_that_drains_and_comes_back_still_has_what_it_was_given() -> None:
    fleet = Fleet("w0")
    fleet.enter([1, 2, 3])
    ((_, given),) = fleet.scheduler.decide(0.0)
    fleet.told("w0", state="draining")
    fleet.enter([4, 5])
    assert fleet.decide(0.01) == []
    fleet.told("w0", state="ready")
    assert fleet.decide(0.02) == []
    fleet.scheduler.ended(given, 0.1, computed=True)
    assert [worker for worker, _ in fleet.decide(0.1)] == ["w0"]


def test_a_new_generation_holds_nothing_of_what_the_old_one_computed() -> None:
    fleet = Fleet("w0")
    fleet.enter([1, 2, 3])
    ((_, given),) = fleet.scheduler.decide(0.0)
    fleet.scheduler.ended(given, 0.3, computed=True)
    fleet.holds("w0", [], generation="g1")
    fleet.enter([1, 2, 3], 0.4)
    assert fleet.decide(0.4) == [("w0", 0)]


def test_another_models_workers_are_given_nothing() -> None:
    fleet = Fleet("w0")
    fleet.told("w0", model="another")
    fleet.enter([1])
    assert fleet.decide() == []


def test_one_that_has_to_go_again_keeps_its_place() -> None:
    fleet = Fleet("w0")
    first = fleet.enter([1, 2], 0.0)
    ((_, given),) = fleet.scheduler.decide(0.0)
    later = fleet.enter([3, 4], 1.0)
    fleet.scheduler.ended(given, 2.0, computed=False)
    again = fleet.scheduler.enter(first.prompt, 2.0, since=0.0)
    assert again.order < later.order


def test_one_that_returns_empty_is_not_run_over() -> None:
    """Its load of late counts as that of the least busy one, not as none."""
    fleet = Fleet("w0", "w1")
    now = 0.0
    for at in range(200):
        fleet.enter([1000 + at] * 20, now)
        for _, given in fleet.scheduler.decide(now):
            fleet.scheduler.ended(given, now, computed=True)
        now += 1.0
    fleet.holds("w2", [])
    chosen = []
    for at in range(30):
        fleet.enter([5000 + at] * 20, now)
        for _, given in fleet.scheduler.decide(now):
            chosen.append(given.worker.worker)
            fleet.scheduler.ended(given, now, computed=True)
        now += 1.0
    assert 5 <= chosen.count("w2") <= 15


def test_another_tenant_does_not_stand_behind_a_flood() -> None:
    fleet = Fleet("w0")
    for at in range(50):
        fleet.enter([100 + at])
    now = 0.0
    for _ in range(10):
        for _, given in fleet.scheduler.decide(now):
            now += given.seconds
            fleet.scheduler.ended(given, now, computed=True)
    late = fleet.enter([1], now, tenant="b")
    served = []
    while late not in served:
        for waiting, given in fleet.scheduler.decide(now):
            served.append(waiting)
            now += given.seconds
            fleet.scheduler.ended(given, now, computed=True)
    assert len(served) <= 2


def test_what_a_prompt_has_to_expect() -> None:
    fleet = Fleet("w0", "w1")
    fleet.holds("w1", names([1, 2, 3]))
    asked = prompt([1, 2, 3, 4])

    def check(seconds: float, held: int) -> None:
        found = fleet.scheduler.expected(asked, 0.0)
        assert found is not None
        assert found.seconds == pytest.approx(seconds)
        assert found.held == held

    check(0.11, 300)
    fleet.enter([1, 2, 3, 5, 6, 7, 8, 9, 10])  # 0.61 s, at w1
    fleet.decide()
    check(0.41, 0)
    fleet.enter([20] * 8)  # 0.81 s, at w0
    fleet.decide()
    check(0.61 + 0.11, 300)
    fleet.enter([21] * 8)
    fleet.decide()
    check((0.61 + 0.81 + 0.81) / 2 + 0.11, 300)
    assert Fleet().scheduler.expected(asked, 0.0) is None


def test_a_slower_worker_is_given_less() -> None:
    fleet = Fleet("w0", "w1")
    now, given_to = 0.0, Counter[str]()
    slow = {"w0": 3.0, "w1": 1.0}
    for at in range(200):
        fleet.enter([1000 + at] * 5, now)
        for _, given in fleet.scheduler.decide(now):
            new = 510 - given.held
            took = Sample(new, given.held, slow[given.worker.worker] * CURVE.seconds(new, 0))
            fleet.scheduler.measured(given.worker, took)
            given_to[given.worker.worker] += 1
            fleet.scheduler.ended(given, now, computed=True)
        now += 1.0
    assert given_to["w1"] > 2 * given_to["w0"]


class Schedulers(RuleBasedStateMachine):
    """Against what must hold of any schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet("w0")
        self.now = 0.0
        self.live = {"w0": "g0"}
        self.draining: set[str] = set()
        self.waiting: dict[int, Waiting] = {}
        self.given: dict[int, Given] = {}
        self.ever: set[int] = set()

    @rule(
        blocks=st.lists(st.integers(min_value=0, max_value=1), max_size=6),
        tenant=st.sampled_from("ab"),
    )
    def enter(self, blocks: list[int], tenant: str) -> None:
        waiting = self.fleet.enter(blocks, self.now, tenant)
        assert waiting.key not in self.ever
        self.ever.add(waiting.key)
        self.waiting[waiting.key] = waiting

    @rule()
    def decide(self) -> None:
        for waiting, given in self.fleet.scheduler.decide(self.now):
            assert self.waiting.pop(waiting.key) is waiting
            assert waiting.key == given.key
            assert self.live[given.worker.worker] == given.worker.generation
            assert given.worker.worker not in self.draining
            self.given[given.key] = given

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.given)
    @rule(data=st.data(), computed=st.booleans(), twice=st.booleans())
    def ended(self, data: st.DataObject, computed: bool, twice: bool) -> None:
        given = self.given.pop(data.draw(st.sampled_from(sorted(self.given))))
        for _ in range(1 + twice):
            self.fleet.scheduler.ended(given, self.now, computed=computed)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.waiting)))
        self.fleet.scheduler.withdraw(self.waiting.pop(key))

    @rule(worker=st.sampled_from(["w0", "w1", "w2"]), generation=st.sampled_from(["g0", "g1"]))
    def starts(self, worker: str, generation: str) -> None:
        self.fleet.holds(worker, [], generation)
        self.live[worker] = generation
        self.draining.discard(worker)

    @rule(worker=st.sampled_from(["w0", "w1", "w2"]))
    def drains(self, worker: str) -> None:
        if worker in self.live:
            self.fleet.told(worker, generation=self.live[worker], state="draining")
            self.draining.add(worker)

    @rule()
    def all_are_lost_for_a_while(self) -> None:
        self.fleet.directory.expire(1e12)
        self.live.clear()
        self.draining.clear()

    @invariant()
    def nobody_is_given_too_much(self) -> None:
        given = Counter((one.worker.worker, one.worker.generation) for one in self.given.values())
        assert all(count <= WEIGHTS.most for count in given.values())

    @invariant()
    def it_counts_what_waits(self) -> None:
        assert len(self.fleet.scheduler) == len(self.waiting)

    def teardown(self) -> None:
        """Whatever came before: with a worker that answers, all are served, and nothing is left."""
        self.starts("w0", "g9")
        for _ in range(2 * len(self.ever) + 2):
            self.now += 10.0
            self.decide()
            for given in self.given.values():
                self.fleet.scheduler.ended(given, self.now, computed=True)
            self.given.clear()
        assert not self.waiting
        self.now += 10.0
        self.decide()
        scheduler = self.fleet.scheduler
        assert len(scheduler._promised) == 0
        assert not scheduler._loads


TestSchedulers = Schedulers.TestCase
