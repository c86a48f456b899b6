"""Standings come in with errands; a flush is over when its memory is overwritten, not before."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.engine_tenants import LATE_SECONDS, TELL_SECONDS, WIPE_BYTES, EngineTenants
from kvstore.handoff import PrefillTicket, TenancyReport, TenancyTicket, to_params
from kvstore.messages import Holding, Standing, Usage, Wiped
from kvstore.soil import Soil
from kvstore.wiping import NO_WIPES, Wipes, Wiping
from tests.support.engine_request import SALT, Request
from tests.support.wipes import CountedWipes

TAG, OTHER = "0123456789abcdef", "f" * 16
SIZE = 1 << 20


class Blocks:
    """A pool that does as it is told."""

    capacity = 100

    def __init__(self) -> None:
        self.changes = 0
        self.soil = Soil()
        self.used = 0
        self.shares: list[tuple[str, float, float]] = []
        self.flushes: list[tuple[str, int]] = []
        self.claims: list[tuple[str | None, list[int]]] = []
        self.held: dict[str, tuple[int, int]] = {}
        self.flushed: list[int] = []

    @property
    def soiled(self) -> int:
        return len(self.soil)

    def share(self, tag: str, floor: float, limit: float) -> None:
        self.shares.append((tag, floor, limit))

    def claim(self, salt: str | None, block_ids: Iterable[int]) -> None:
        self.claims.append((salt, list(block_ids)))

    def flush(self, tag: str, epoch: int) -> int:
        self.flushes.append((tag, epoch))
        for block in self.flushed:
            self.soil.add(block)
        return len(self.flushed) + self.used

    def left(self, tag: str, epoch: int) -> int:
        return self.used

    def take_soiled(self, most: int) -> list[int]:
        return self.soil.take(most, lambda block: block < 0)

    def mark(self) -> int:
        return self.soil.mark()

    def clean_since(self, mark: int) -> bool:
        return self.soil.clean_since(mark)

    def holdings(self) -> dict[str, tuple[int, int]]:
        return dict(self.held)


class Engine:
    """The subject, its pool and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pool = Blocks()
        self.tenants = EngineTenants(self.pool, "prefill-0", SIZE, lambda: self.now)
        self.errands = 0

    def tell(self, *standings: Standing) -> str:
        self.errands += 1
        name = f"errand-{self.errands}"
        params = to_params(TenancyTicket(standings))
        assert self.tenants.added(Request(name, [0], "", params))
        return name

    def told(self, kind: type[Any]) -> list[Any]:
        return [told for told in self.tenants.take_told() if isinstance(told, kind)]


def test_only_an_errand_is_taken_in_and_it_is_nobody_elses() -> None:
    engine = Engine()
    assert not engine.tenants.added(Request("r", [1]))
    ticket = to_params(PrefillTicket("0" * 32, 1000))
    assert not engine.tenants.added(Request("s", [1], SALT, ticket))
    assert engine.tenants.finished("r") is None
    assert engine.tenants.finished(engine.tell()) == TenancyReport(0)


def test_an_errand_that_cannot_be_read_changes_nothing_and_is_nobodys() -> None:
    engine = Engine()
    broken: dict[str, object] = {"kvferry": {"type": "tenancy", "standings": [["x", 1, 0, 1]]}}
    assert engine.tenants.added(Request("r", [0], "", broken))
    assert (engine.pool.flushes, engine.pool.shares) == ([], [])


def test_epochs_only_rise_and_shares_are_the_last_told() -> None:
    engine = Engine()
    engine.tell(Standing(TAG, 3, 0.1, 0.5), Standing(OTHER, 0))
    engine.tell(Standing(TAG, 2, 0.2, 0.5), Standing(TAG, 3, 0.2, 0.5))
    engine.tell(Standing(TAG, 4, 0.2, 0.5))
    assert engine.pool.flushes == [(TAG, 3), (TAG, 4)]
    assert engine.pool.shares == [(TAG, 0.1, 0.5), (TAG, 0.2, 0.5)]


def test_a_flush_is_over_when_the_worker_has_told_that_it_has_overwritten() -> None:
    engine = Engine()
    engine.pool.flushed = [5, 6]
    errand = engine.tell(Standing(TAG, 1))
    assert engine.tenants.restless()
    orders = engine.tenants.step([])
    assert orders == Wipes(1, [5, 6])
    assert engine.tenants.finished(errand) == TenancyReport(1)
    assert engine.told(Wiped) == []
    assert engine.tenants.flushing() == {TAG: 1}
    engine.now += 0.25
    engine.tenants.wiped(1)
    assert engine.tenants.flushing() == {}
    assert engine.told(Wiped) == [Wiped("prefill-0", "gpu", TAG, 1, 2 * SIZE, 0.25)]
    assert engine.tenants.finished(engine.tell()) == TenancyReport(0)


def test_a_tenant_of_whom_nothing_is_here_is_flushed_at_once() -> None:
    engine = Engine()
    engine.tell(Standing(TAG, 7))
    assert engine.tenants.step([]) == NO_WIPES
    assert engine.told(Wiped) == [Wiped("prefill-0", "gpu", TAG, 7, 0, 0.0)]


def test_blocks_in_use_are_waited_for_and_then_overwritten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Engine()
    engine.pool.used, engine.pool.flushed = 1, [5]
    engine.tell(Standing(TAG, 1))
    assert engine.tenants.step([]).number == 1
    engine.tenants.wiped(1)
    assert engine.told(Wiped) == []
    with caplog.at_level(logging.WARNING, "kvferry.tenants"):
        for _ in range(3):
            engine.now += LATE_SECONDS
            engine.tenants.step([])
    assert len(caplog.records) == 1
    engine.pool.used = 0
    engine.pool.soil.add(6)
    assert engine.tenants.step([]) == Wipes(2, [6])
    assert engine.told(Wiped) == []
    engine.tenants.wiped(2)
    assert [told.size for told in engine.told(Wiped)] == [2 * SIZE]


def test_a_flush_during_a_flush_ends_both_with_the_later_epoch() -> None:
    engine = Engine()
    engine.pool.used = 1
    engine.tell(Standing(TAG, 1))
    engine.tell(Standing(TAG, 2))
    engine.pool.used = 0
    engine.tenants.step([])
    assert [told.epoch for told in engine.told(Wiped)] == [2]


def test_much_is_overwritten_in_several_steps() -> None:
    engine = Engine()
    engine.pool.flushed = list(range(2 * (WIPE_BYTES // SIZE) + 1))
    engine.tell(Standing(TAG, 1))
    sizes = []
    while engine.pool.soiled:
        assert engine.tenants.restless()
        orders = engine.tenants.step([], idle=True)
        sizes.append(len(orders.blocks) * SIZE)
        engine.tenants.wiped(orders.number)
        assert bool(engine.told(Wiped)) == (not engine.pool.soiled)
    assert sizes == [WIPE_BYTES, WIPE_BYTES, SIZE]


@pytest.mark.parametrize("step_seconds", [0.001, 0.03, 0.2, 1.0])
@pytest.mark.parametrize("idle_seconds", [0.0, 60.0])
def test_a_gibibyte_is_overwritten_in_time_however_long_steps_take(
    step_seconds: float, idle_seconds: float
) -> None:
    engine = Engine()
    engine.tenants.step([])
    engine.now += idle_seconds
    engine.pool.flushed = list(range((1 << 30) // SIZE))
    engine.tell(Standing(TAG, 1))
    began, sizes = engine.now, []
    while not engine.told(Wiped):
        orders = engine.tenants.step([])
        engine.now += step_seconds
        engine.tenants.wiped(orders.number)
        sizes.append(len(orders.blocks) * SIZE)
    assert engine.now - began <= LATE_SECONDS
    assert sizes[0] == WIPE_BYTES
    assert step_seconds > 0.1 or max(sizes) == WIPE_BYTES


def test_a_request_claims_its_blocks_under_its_salt_while_it_lives() -> None:
    engine = Engine()
    engine.tenants.added(Request("r", [1]))
    engine.tenants.allocated("r", [[1, 2], [3]])
    engine.tenants.step([("r", [4])])
    engine.tenants.finished("r")
    assert engine.pool.claims == [(SALT, [1, 2]), (SALT, [3]), (SALT, [4])]


def test_usage_is_told_when_it_changes_at_most_once_a_second_while_busy() -> None:
    engine = Engine()
    engine.tenants.step([], idle=True)
    assert engine.told(Usage) == [Usage("prefill-0", "gpu", 100 * SIZE, 0, 1, ())]
    engine.pool.held = {TAG: (2, 3)}
    engine.pool.changes += 1
    engine.now += 60.0
    for _ in range(4):
        engine.tenants.step([])
        assert engine.told(Usage) == []
        engine.now += TELL_SECONDS / 4
    engine.tenants.step([])
    (usage,) = engine.told(Usage)
    assert usage.holdings == (Holding(TAG, 2 * SIZE, 3 * SIZE),)
    engine.now += TELL_SECONDS
    engine.tenants.step([])
    assert engine.told(Usage) == []


def test_an_engine_that_becomes_idle_does_not_rest_before_it_has_told_how_it_is_left() -> None:
    engine = Engine()
    engine.tenants.step([], idle=True)
    engine.tenants.take_told()
    assert not engine.tenants.restless()
    engine.pool.held = {TAG: (1, 0)}
    engine.pool.changes += 1
    steps = 0
    while engine.tenants.restless():
        engine.now += 0.01
        engine.tenants.step([], idle=True)
        steps += 1
    assert len(engine.told(Usage)) == 1
    assert steps == 5


def test_a_request_that_is_soon_done_is_told_of_when_it_is_and_the_engine_rests() -> None:
    engine = Engine()
    engine.tenants.step([], idle=True)
    engine.tenants.take_told()
    engine.now += 60.0
    engine.pool.held = {TAG: (0, 1)}
    engine.pool.changes += 1
    engine.tenants.step([])
    engine.tenants.step([])
    assert engine.told(Usage) == []
    engine.pool.held = {TAG: (1, 0)}
    engine.pool.changes += 1
    engine.tenants.step([], idle=True)
    assert [one.holdings for one in engine.told(Usage)] == [(Holding(TAG, SIZE, 0),)]
    assert not engine.tenants.restless()


def test_many_tenants_are_told_in_parts() -> None:
    engine = Engine()
    engine.pool.held = {f"{number:016x}": (1, 0) for number in range(1025)}
    engine.tenants.step([], idle=True)
    told = engine.told(Usage)
    assert [(one.part, one.parts, len(one.holdings)) for one in told] == [(0, 2, 1024), (1, 2, 1)]


@given(st.lists(st.integers(0, 9)), st.integers(0, 4), st.sets(st.integers(0, 9)))
def test_soil_is_taken_oldest_first_and_what_is_urgent_at_once(
    added: list[int], most: int, urgent: set[int]
) -> None:
    soil = Soil()
    for block in added:
        soil.add(block)
    order, mark = list(dict.fromkeys(added)), soil.mark()
    taken = soil.take(most, urgent.__contains__)
    others = [block for block in order if block not in urgent]
    assert taken == [block for block in order if block in urgent] + others[:most]
    assert len(soil) == len(others[most:])
    assert soil.clean_since(mark) == (len(others) <= most)
    soil.add(99)
    assert soil.clean_since(mark) == (len(others) <= most), "what came later does not count"


def test_a_worker_tells_of_an_order_once_it_is_carried_out_and_once() -> None:
    pages = CountedWipes()
    wiping = Wiping(pages)
    wiping.carry_out(NO_WIPES)
    assert wiping.take_done() == 0
    wiping.carry_out(Wipes(3, [7, 8]))
    assert (pages.wiped, wiping.take_done(), wiping.take_done()) == ([7, 8], 3, 0)
