"""A prompt that is here, but for what decode computes, is shipped and not computed."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kvstore.handoff import PrefillReport
from kvstore.layout import KVGroup
from kvstore.messages import Held
from kvstore.tier import NoCopy, NoLookup, TierLookup
from kvstore.transfer import Prompt
from prefill.orders import Opening, Orders
from prefill.scheduling import TELL_SECONDS, WAIT_SECONDS, PrefillScheduling, Scheduled
from prefill.working import PrefillWorking
from tests.support.block_holds import CountedHolds
from tests.support.engine_request import SALT, Request
from tests.support.wipes import no_wiping

BLOCK, LENGTH, WHOLE = 4, 18, 16
TRANSFER = bytes(16)
TABLE = [5, 6, 7, 8, 9]
SLIDING = (KVGroup(("s",), 5), KVGroup(("f",)))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Chunked(NoLookup):
    """A tier of chunks of eight tokens that holds one chunk of any prompt, once it answers."""

    chunk_tokens = 8
    answer: int | None = 8

    def poll(self, request: str) -> int | None:
        return self.answer


def scheduling(
    held: int = WHOLE,
    length: int = LENGTH,
    groups: tuple[KVGroup, ...] = (KVGroup(),),
    tier: TierLookup | None = None,
    holds: CountedHolds | None = None,
    clock: Clock | None = None,
) -> PrefillScheduling:
    """With request "r" in the queue, ``held`` tokens of it expected here."""
    subject = PrefillScheduling(
        tier or NoLookup(), groups, BLOCK, 30.0, holds or CountedHolds(), clock or Clock()
    )
    ticket: dict[str, Any] = {"transfer": TRANSFER.hex(), "ttl_ms": 1000, "held": held}
    subject.added(Request("r", list(range(length)), SALT, {"kvferry": ticket}))
    return subject


def waiting(**setting: Any) -> PrefillScheduling:
    """And taken up by the engine, to be shipped only."""
    subject = scheduling(**setting)
    assert subject.matched("r", WHOLE) == 1
    groups = setting.get("groups", (KVGroup(),))
    subject.allocated("r", [TABLE] * len(groups), 1)
    return subject


def shipped(supplies: list[Any]) -> dict[tuple[int, int], int]:
    return {place: page for supply in supplies for place, page in supply.pages.items()}


def test_it_leaves_whole_and_nothing_is_computed() -> None:
    subject = waiting()
    orders = subject.step([], idle=True)
    assert [opening.transfer for opening in orders.openings] == [TRANSFER]
    assert shipped(orders.supplies_before) == {(0, at): TABLE[at] for at in range(4)}
    assert (orders.supplies_after, orders.stores) == ([], [])
    assert [opening.stop for opening in orders.openings] == [WHOLE // BLOCK]
    assert orders.parked == ["r"]
    assert subject.take_told() == [Held(TRANSFER, WHOLE, 0.0)]
    again = subject.step([])
    assert (again.parked, again.openings, again.supplies_before) == ([], [], [])
    assert subject.take_told() == []
    assert subject.finished("r")
    last = subject.step([])
    assert (last.closings, last.released, last.resumed) == ([TRANSFER], ["r"], [])


def test_what_another_request_computes_in_this_step_leaves_after_it() -> None:
    subject = waiting()
    subject.added(Request("other", list(range(LENGTH)), SALT))
    orders = subject.step([Scheduled("other", 8, 10, [TABLE])])
    assert shipped(orders.supplies_before) == {(0, 0): 5, (0, 1): 6}
    assert shipped(orders.supplies_after) == {(0, 2): 7, (0, 3): 8}


@pytest.mark.parametrize(("held", "computed"), [(WHOLE - 1, WHOLE), (WHOLE, WHOLE - BLOCK)])
def test_it_is_computed_where_decode_awaits_the_rest_or_more_is_missing(
    held: int, computed: int
) -> None:
    subject = scheduling(held)
    assert subject.matched("r", computed) == 0
    subject.allocated("r", [TABLE], 0)
    orders = subject.step([Scheduled("r", computed, LENGTH - computed, [TABLE])])
    assert orders.parked == []
    assert (0, 4) in shipped(orders.supplies_after)


def test_what_the_engine_has_lost_meanwhile_is_computed() -> None:
    """The engine asks again where it found no room for the first answer."""
    subject = scheduling()
    assert subject.matched("r", WHOLE) == 1
    assert subject.matched("r", 0) == 0
    subject.allocated("r", [TABLE], 0)
    assert subject.step([Scheduled("r", 0, LENGTH, [TABLE])]).parked == []


def test_what_finds_no_room_to_wait_in_is_computed() -> None:
    """vLLM asks more of a request that waits: nothing behind it may have to wait with it."""
    subject = scheduling()
    assert subject.matched("r", WHOLE) == 1
    assert subject.matched("r", WHOLE) == 0


def test_what_the_engine_computes_all_the_same_is_like_any_other() -> None:
    subject = scheduling()
    assert subject.matched("r", WHOLE) == 1
    subject.allocated("r", [TABLE], 0)
    orders = subject.step([Scheduled("r", WHOLE, 2, [TABLE])])
    assert (orders.parked, subject.take_told()) == ([], [])
    assert subject.finished("r")


def test_a_prompt_without_a_transfer_is_computed() -> None:
    subject = PrefillScheduling(NoLookup(), (KVGroup(),), BLOCK, 30.0, CountedHolds(), Clock())
    subject.added(Request("r", list(range(LENGTH))))
    assert subject.matched("r", WHOLE) == 0


@pytest.mark.parametrize(("window", "kept"), [(4, True), (5, True), (6, False), (7, True)])
def test_a_window_that_the_wait_would_cost_a_block_is_not_kept_waiting(
    window: int, kept: bool
) -> None:
    """The engine reserves as for the token after the one waited for, here token 17.

    Token 16 attends to tokens from 16 - window + 1 on.
    """
    groups = (KVGroup(("s",), window), KVGroup(("f",)))
    assert scheduling(groups=groups).matched("r", WHOLE) == int(kept)
    assert kept == ((17 - window + 1) // BLOCK == (16 - window + 1) // BLOCK)


def test_a_windows_blocks_are_held_until_they_have_been_read() -> None:
    holds = CountedHolds()
    subject = waiting(groups=SLIDING, holds=holds)
    assert shipped(subject.step([]).supplies_before) == {
        **{(0, at): TABLE[at] for at in (3,)},
        **{(1, at): TABLE[at] for at in range(4)},
    }
    assert subject.finished("r")
    assert holds.held == {8: 1}
    subject.loaded(["r"])
    assert not holds.held


def test_chunks_that_the_tier_has_lost_are_stored_again() -> None:
    (store,) = waiting(tier=Chunked()).step([]).stores
    assert (store.start, store.end, store.block_ids) == (8, 16, [7, 8])


def test_it_leaves_before_the_tier_has_answered_and_is_let_go_after() -> None:
    tier = Chunked()
    tier.answer = None
    subject = waiting(tier=tier)
    orders = subject.step([])
    assert shipped(orders.supplies_before) == {(0, at): TABLE[at] for at in range(4)}
    assert (orders.parked, subject.take_told(), orders.stores) == (["r"], [], [])
    tier.answer = 8
    orders = subject.step([])
    assert (orders.parked, subject.take_told()) == ([], [Held(TRANSFER, WHOLE, 0.0)])
    assert [store.end for store in orders.stores] == [WHOLE]


def test_the_gate_is_told_again_while_nothing_comes_of_it() -> None:
    clock = Clock()
    subject = waiting(clock=clock)
    told = []
    for clock.now in (0.0, TELL_SECONDS - 0.1, TELL_SECONDS):
        subject.step([])
        told.append(len(subject.take_told()))
    assert told == [1, 0, 1]


def test_a_wait_that_nobody_ends_is_ended() -> None:
    clock = Clock()
    subject = waiting(clock=clock)
    subject.step([])
    clock.now = WAIT_SECONDS - 0.1
    assert subject.step([]).resumed == []
    clock.now = WAIT_SECONDS
    assert subject.step([]).resumed == ["r"]
    assert subject.step([]).resumed == []
    subject.loaded(["r"])
    assert subject.report("r") is None
    assert subject.matched("r", WHOLE) == 0
    subject.step([Scheduled("r", WHOLE, 2, [TABLE])])
    clock.now += 0.25
    assert subject.report("r") == PrefillReport(250.0, WHOLE, 0)
    assert subject.finished("r")
    assert subject.step([]).released == ["r"]


def test_a_wait_whose_end_is_ordered_is_not_ended_twice() -> None:
    """vLLM has one report to come for it; a second one would end the engine."""
    clock = Clock()
    subject = waiting(clock=clock)
    subject.step([])
    clock.now = WAIT_SECONDS
    subject.step([])
    assert not subject.finished("r")
    assert subject.step([]).released == []


# --- the worker's half


class Slice:
    """A shipper that settles when told."""

    def __init__(self) -> None:
        self.settled: list[bytes] = []

    def open(self, *what: object) -> None:
        return

    def fence(self) -> None:
        return

    def take_settled(self, wait_seconds: float) -> list[bytes]:
        settled, self.settled = self.settled, []
        return settled


def working() -> tuple[PrefillWorking, Slice]:
    """At work on "r", which is only shipped."""
    part = Slice()
    subject = PrefillWorking([cast("Any", part)], NoCopy(), no_wiping())
    opening = Opening(TRANSFER, "r", Prompt("s", bytes(32), 1), 9.0, 1)
    subject.before_forward(Orders(openings=[opening], parked=["r"]))
    return subject, part


def test_its_end_is_reported_as_a_loads_once_it_is_shipped_and_let_go() -> None:
    subject, part = working()
    part.settled = [TRANSFER]
    assert not subject.reports().loaded
    subject.after_forward(Orders(released=["r"]))
    reports = subject.reports()
    assert (reports.loaded, reports.failed, reports.sent) == ({"r"}, set(), set())
    reports = subject.reports()
    assert (reports.loaded, reports.failed, reports.sent) == (set(), set(), set())


def test_pages_still_on_their_way_are_not_given_back() -> None:
    subject, part = working()
    subject.after_forward(Orders(released=["r"]))
    assert not subject.reports().loaded
    part.settled = [TRANSFER]
    assert subject.reports().loaded == {"r"}


def test_what_is_resumed_has_loaded_nothing_and_is_then_like_any_other() -> None:
    subject, part = working()
    part.settled = [TRANSFER]
    subject.after_forward(Orders(resumed=["r"]))
    reports = subject.reports()
    assert (reports.loaded, reports.failed, reports.sent) == ({"r"}, {"r"}, set())
    subject.after_forward(Orders(released=["r"]))
    reports = subject.reports()
    assert (reports.loaded, reports.failed, reports.sent) == (set(), set(), {"r"})
