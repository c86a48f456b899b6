"""The op queue: every op one result, and no page touched after a withdrawal."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.tier import Job, Kind, NoCopy, OpQueue, TierOp

LIMIT = 5
REQUESTS = st.sampled_from(["one", "two", "three"])


def op(number: int, request: str = "one") -> TierOp:
    return TierOp(number, request, [1, 2], "salt", 0, 2, [0])


class Queue(RuleBasedStateMachine):
    """Drives the queue as its two threads do, in any order they may."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = OpQueue(LIMIT)
        self.given: dict[int, str] = {}
        self.results: Counter[int] = Counter()
        self.outcomes: dict[int, bool] = {}
        self.job: Job | None = None
        self.copying = False
        self.copied = False
        self.withdrawn: set[int] = set()

    @rule(kind=st.sampled_from(["store", "load"]), request=REQUESTS)
    def submit(self, kind: Kind, request: str) -> None:
        number = len(self.given)
        self.given[number] = request
        room = len(self.queue) < LIMIT
        assert self.queue.submit(kind, op(number, request), deadline=0.0) == room

    @rule(request=REQUESTS)
    def refuse(self, request: str) -> None:
        number = len(self.given)
        self.given[number] = request
        self.queue.refuse("load", op(number, request), "no")

    @precondition(lambda self: self.job is None)
    @rule()
    def take(self) -> None:
        self.job = self.queue.take()
        self.copied = False
        if self.job:
            assert self.job.op.op not in self.withdrawn

    @precondition(lambda self: self.job and not self.copying and not self.copied)
    @rule()
    def begin_copy(self) -> None:
        assert self.job is not None
        self.copying = self.queue.begin_copy()
        assert self.copying == (self.job.op.op not in self.withdrawn)

    @precondition(lambda self: self.copying)
    @rule()
    def end_copy(self) -> None:
        self.queue.end_copy()
        self.copying, self.copied = False, True

    @precondition(lambda self: self.job and not self.copying)
    @rule(ok=st.booleans())
    def finish(self, ok: bool) -> None:
        self.queue.finish(ok=ok and self.copied, blocks=2)
        self.job = None

    @rule(request=REQUESTS)
    def withdraw(self, request: str) -> None:
        """As the owner does it: it goes on only when the request's pages are at rest."""
        dropped = self.queue.withdraw(request)
        assert all(job.op.request == request for job in dropped)
        self.queue.abandon(request)
        if self.queue.touches(request):
            assert self.copying
            return
        settled = {self.job.op.op} if self.job and self.copied else set()
        mine = {number for number, owner in self.given.items() if owner == request}
        self.withdrawn |= mine - settled

    @rule()
    def fail_queued(self) -> None:
        self.queue.fail_queued("down")
        assert len(self.queue) == 0

    @rule()
    def drain(self) -> None:
        for result in self.queue.drain():
            self.results[result.op_id] += 1
            self.outcomes[result.op_id] = result.ok
            assert result.request == self.given[result.op_id]
            assert (result.reason is None) or not result.ok

    @invariant()
    def bounded(self) -> None:
        assert len(self.queue) <= LIMIT

    def teardown(self) -> None:
        if self.copying:
            self.end_copy()
        if self.job:
            self.finish(ok=True)
        self.fail_queued()
        self.drain()
        assert self.results == Counter(dict.fromkeys(self.given, 1))


Queue.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestQueue = Queue.TestCase


def test_loads_go_before_stores_and_each_kind_in_order() -> None:
    queue = OpQueue(limit=9)
    kinds: list[Kind] = ["store", "store", "load", "load"]
    for number, kind in enumerate(kinds):
        queue.submit(kind, op(number), deadline=0.0)
    order = []
    while job := queue.take():
        order.append(job.op.op)
        queue.finish(ok=False, reason="test")
    assert order == [2, 3, 0, 1]


def test_a_withdrawn_copy_is_waited_for_not_cut() -> None:
    queue = OpQueue(limit=1)
    queue.submit("store", op(1), deadline=0.0)
    queue.take()
    assert queue.touches("one")
    assert queue.begin_copy()
    queue.withdraw("one")
    queue.abandon("one")
    assert queue.touches("one")
    queue.end_copy()
    assert not queue.touches("one")
    queue.finish(ok=True, blocks=2)
    assert [r.ok for r in queue.drain()] == [True]


def test_what_was_abandoned_before_its_copy_never_copies() -> None:
    queue = OpQueue(limit=1)
    queue.submit("load", op(1), deadline=0.0)
    queue.take()
    queue.abandon("two")
    assert queue.touches("one")
    queue.abandon("one")
    assert not queue.touches("one")
    assert [(r.op_id, r.ok) for r in queue.drain()] == [(1, False)]
    assert not queue.begin_copy()
    queue.finish(ok=True, blocks=2)
    assert queue.drain() == []


def test_steps_out_of_order_are_errors() -> None:
    queue = OpQueue(limit=1)
    for step in (queue.begin_copy, queue.end_copy, lambda: queue.finish(ok=True)):
        with pytest.raises(ValueError, match="running"):
            step()
    queue.submit("store", op(1), deadline=0.0)
    queue.take()
    with pytest.raises(ValueError, match="one op at a time"):
        queue.take()
    with pytest.raises(ValueError, match="not copying"):
        queue.end_copy()


def test_without_a_tier_every_op_fails_at_once() -> None:
    copy = NoCopy()
    copy.attach({})
    copy.store(op(1))
    copy.load(op(2))
    copy.withdraw("one")
    assert [(r.op_id, r.ok) for r in copy.drain()] == [(1, False), (2, False)]
    assert copy.drain() == []
    assert copy.status() == "down"
