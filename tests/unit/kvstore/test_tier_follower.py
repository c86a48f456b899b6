"""A relay's view of the tier: what the server holds at one moment, or nothing; true in the end."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore import relay_core
from kvstore.engine_events import Cleared, Event, Removed, Stored
from kvstore.messages import PROTOCOL_VERSION, Delta, Snapshot, Subscribe
from kvstore.relay_core import RelayCore, Told
from kvstore.tier_follower import SILENCE_SECONDS, TierFollower
from tests.support.announcing import announce

NAMES = [bytes([number]) * 16 for number in range(8)]
SOME = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)


def apply(held: set[bytes], events: list[Event]) -> None:
    for event in events:
        match event:
            case Cleared():
                held.clear()
            case Stored(names):
                held.update(names)
            case Removed(names):
                held.difference_update(names)


class Followings(RuleBasedStateMachine):
    """A server that changes and restarts, a line that loses what is on it, one relay."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(relay_core, "_NAMES_PER_MESSAGE", 2)
        self.patch.setattr(relay_core, "_HISTORY", 3)
        self.now, self.lives = 0.0, 0
        self.line: deque[Told] = deque()
        self.follower = TierFollower()
        self.known: set[bytes] = set()
        self.begin()

    def begin(self) -> None:
        self.lives += 1
        self.truth: set[bytes] = set()
        self.core = RelayCore(announce("scope", f"life-{self.lives}"))
        self.moments: dict[tuple[str, int], set[bytes]] = {}
        self.note()

    def note(self) -> None:
        self.moments[self.core.announce.generation, self.core.announce.seq] = set(self.truth)

    def send(self, messages: list[Told]) -> None:
        if self.core.subscribers:
            self.line.extend(messages)

    @rule(added=SOME, removed=SOME, cleared=st.booleans())
    def change(self, added: list[bytes], removed: list[bytes], cleared: bool) -> None:
        events: list[Event] = [Cleared()] if cleared else []
        before = set() if cleared else set(self.truth)
        events += [Removed(tuple(n for n in removed if n in before))]
        left = before - set(removed)
        events += [Stored(tuple(n for n in added if n not in left))]
        for delta in self.core.apply("dram", events):
            apply(self.truth, changes(delta))
            self.moments[delta.generation, delta.seq] = set(self.truth)
            self.send([delta])
        assert self.truth == left | set(added)

    @rule()
    def server_announces(self) -> None:
        self.core.expire(self.now)
        self.send([self.core.announce])

    @rule()
    def server_restarts(self) -> None:
        self.line.clear()
        self.begin()

    @rule()
    def server_drops_the_relay(self) -> None:
        self.core.drop(b"relay")

    @rule()
    def relay_asks(self) -> None:
        wish = Subscribe(PROTOCOL_VERSION, "w", *self.follower.wants)
        self.line.extend(self.core.subscribe(b"relay", wish, self.now))

    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.line))):
            apply(self.known, self.follower.take(self.line.popleft(), self.now))

    @rule(count=st.integers(1, 3))
    def lose(self, count: int) -> None:
        for _ in range(min(count, len(self.line))):
            self.line.popleft()

    @rule(seconds=st.sampled_from([0.5, 1.0, SILENCE_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        apply(self.known, self.follower.expire(self.now))

    @invariant()
    def it_knows_what_was_true_at_one_moment(self) -> None:
        generation, seq = self.follower.wants
        if generation and generation == self.core.announce.generation:
            assert self.known == self.moments[generation, seq]

    def teardown(self) -> None:
        for _ in range(4):
            self.now += relay_core.SNAPSHOT_SECONDS
            self.server_announces()
            self.relay_asks()
            self.deliver(len(self.line) or 1)
        assert self.known == self.truth
        self.patch.undo()


def changes(delta: Delta) -> list[Event]:
    def cut(joined: bytes) -> tuple[bytes, ...]:
        return tuple(joined[at : at + 16] for at in range(0, len(joined), 16))

    cleared: list[Event] = [Cleared()] if delta.cleared else []
    return [*cleared, Removed(cut(delta.removed)), Stored(cut(delta.added))]


Followings.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestFollowings = Followings.TestCase


def warm(follower: TierFollower) -> None:
    follower.take(announce("scope", "life", seq=3), 0.0)
    told = follower.take(Snapshot("scope", "life", 3, 0, 1, "dram", NAMES[0]), 0.0)
    assert told == [Stored((NAMES[0],))]
    assert follower.wants == ("life", 3)


def test_silence_is_nothing_held() -> None:
    follower = TierFollower()
    assert follower.expire(SILENCE_SECONDS) == []
    warm(follower)
    assert follower.expire(SILENCE_SECONDS - 0.1) == []
    assert follower.expire(SILENCE_SECONDS) == [Cleared()]
    assert follower.wants == ("", 0)
    assert follower.expire(SILENCE_SECONDS + 1) == []


@pytest.mark.parametrize(
    "message",
    [
        Delta("scope", "life", 5, "dram", False, NAMES[1], b""),
        Delta("scope", "life", 4, "dram", False, b"short", b""),
        announce("scope", "life", seq=4),
        announce("scope", "next life"),
        Snapshot("scope", "life", 4, 1, 2, "dram", NAMES[1]),
    ],
)
def test_a_gap_another_life_or_what_is_no_name_makes_it_cold(message: Told) -> None:
    follower = TierFollower()
    warm(follower)
    assert follower.take(message, 0.0) == [Cleared()]
    assert follower.wants == ("", 0)


@pytest.mark.parametrize(
    "message",
    [
        Delta("scope", "another life", 4, "dram", False, NAMES[1], b""),
        Snapshot("scope", "another life", 4, 0, 1, "dram", NAMES[1]),
        Delta("scope", "life", 3, "dram", True, NAMES[1], b""),
        Snapshot("scope", "life", 3, 0, 1, "dram", NAMES[1]),
    ],
)
def test_what_is_old_or_of_a_life_not_announced_changes_nothing(message: Told) -> None:
    follower = TierFollower()
    warm(follower)
    assert follower.take(message, 0.0) == []
    assert follower.wants == ("life", 3)


def test_engine_memory_is_none_of_its_business() -> None:
    """An empty snapshot comes under the name of the other tier."""
    follower = TierFollower()
    follower.take(announce("scope", "life"), 0.0)
    assert follower.take(Snapshot("scope", "life", 0, 0, 1, "gpu", b""), 0.0) == []
    assert follower.wants == ("life", 0)
