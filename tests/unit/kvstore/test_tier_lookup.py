"""The lookup ledger: what a lookup locks is unlocked once, by a release or by a load."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from kvstore.tier import NoLookup, TierKey
from kvstore.tier_lookup import Ask, LookupLedger, Release
from tests.support.salted import once_of, salt_of

CHUNK = 4
SALT, ONCE = salt_of("alice"), once_of("alice")
SECONDS = 1.0
REQUESTS = st.sampled_from(["one", "two", "three"])


class Lookups(RuleBasedStateMachine):
    """A server that locks chunks, errands that reach it in order, requests that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = LookupLedger(CHUNK, SECONDS, limit=2)
        self.now = 0.0
        self.sent: list[Ask] = []
        self.answers: list[tuple[str, int]] = []
        self.locked: dict[str, Counter[int]] = {}
        self.kept: Counter[int] = Counter()
        self.live: set[str] = set()

    def carry_out(self, release: Release | None) -> None:
        if release is None:
            return
        held = self.locked.pop(release.session, Counter())
        freed: Counter[int] = Counter()
        for start, end in release.ranges:
            assert start % CHUNK == 0
            assert end % CHUNK == 0
            freed.update(range(start // CHUNK, end // CHUNK))
        # LMCache unlocks only what the lookup had locked.
        self.kept.update(held - freed)

    @rule(request=REQUESTS, length=st.integers(0, 20), salt=st.sampled_from([SALT, ONCE, "nobody"]))
    def start(self, request: str, length: int, salt: str) -> None:
        ask = self.ledger.start(TierKey(request, [0] * length, salt), self.now)
        if ask is not None:
            assert salt == SALT
            assert 0 < ask.end <= length
            self.sent.append(ask)
            self.live.add(request)

    @precondition(lambda self: self.sent)
    @rule(hit=st.integers(0, 5))
    def serve(self, hit: int) -> None:
        ask = self.sent.pop(0)
        chunks = min(hit, ask.end // CHUNK)
        self.locked[ask.session] = Counter(range(chunks))
        self.answers.append((ask.session, chunks * CHUNK))

    @precondition(lambda self: self.answers)
    @rule()
    def answer(self) -> None:
        self.carry_out(self.ledger.answered(*self.answers.pop(0)))

    @rule(request=REQUESTS)
    def poll(self, request: str) -> None:
        held = self.ledger.poll(request, self.now)
        if request not in self.live:
            assert held == 0

    @rule(request=REQUESTS, start=st.integers(0, 20), length=st.integers(0, 20))
    def keep(self, request: str, start: int, length: int) -> None:
        held = self.ledger.poll(request, self.now) or 0
        before = self.kept.total()
        self.carry_out(self.ledger.keep(request, start, start + length))
        first, last = start // CHUNK, min(-(-(start + length) // CHUNK), held // CHUNK)
        assert self.kept.total() - before == (max(0, last - first) if held else 0)
        assert not self.ledger.poll(request, self.now)

    @rule(request=REQUESTS)
    def end(self, request: str) -> None:
        self.carry_out(self.ledger.end(request))
        self.live.discard(request)

    @rule()
    def late(self) -> None:
        self.now += SECONDS
        assert all(self.ledger.poll(r, self.now) is not None for r in ("one", "two", "three"))

    @rule()
    def link_lost(self) -> None:
        for release in self.ledger.lost():
            self.carry_out(release)
        self.sent, self.answers = [], []
        assert all(self.ledger.poll(r, self.now) is not None for r in ("one", "two", "three"))

    def teardown(self) -> None:
        while self.sent:
            self.serve(5)
        while self.answers:
            self.answer()
        for release in self.ledger.end_all():
            self.carry_out(release)
        assert self.locked == {}


Lookups.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestLookups = Lookups.TestCase


def test_a_late_answer_is_unlocked_and_poll_stays_at_zero() -> None:
    ledger = LookupLedger(CHUNK, SECONDS, limit=2)
    ask = ledger.start(TierKey("one", [0] * 9, SALT), 0.0)
    assert ask is not None
    assert ledger.poll("one", 0.5) is None
    assert ledger.poll("one", 1.0) == 0
    release = ledger.answered(ask.session, 8)
    assert release is not None
    assert release.ranges == ((0, 8),)
    assert ledger.poll("one", 1.0) == 0
    assert ledger.end("one") is None


def test_keep_widens_to_whole_chunks() -> None:
    ledger = LookupLedger(CHUNK, SECONDS, limit=2)
    ask = ledger.start(TierKey("one", [0] * 20, SALT), 0.0)
    assert ask is not None
    assert ledger.answered(ask.session, 16) is None
    assert ledger.poll("one", 0.0) == 16
    release = ledger.keep("one", 5, 11)
    assert release is not None
    assert release.ranges == ((0, 4), (12, 16))


def test_sessions_are_never_used_twice() -> None:
    ledger = LookupLedger(CHUNK, SECONDS, limit=2)
    sessions = set()
    for _ in range(3):
        ask = ledger.start(TierKey("one", [0] * 4, SALT), 0.0)
        assert ask is not None
        sessions.add(ask.session)
        ledger.answered(ask.session, 0)
        ledger.end("one")
    assert len(sessions) == 3


def test_without_a_tier_nothing_is_held() -> None:
    lookup = NoLookup()
    lookup.start(TierKey("one", [0] * 9, SALT))
    assert (lookup.poll("one"), lookup.chunk_tokens) == (0, 0)
