"""The directory against a real relay core over a network that loses, repeats and reorders."""

from __future__ import annotations

import random
from collections.abc import Iterator

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore import relay_core
from kvstore.engine_events import Cleared, Removed, Stored
from kvstore.index import Directory, Held
from kvstore.messages import PROTOCOL_VERSION, Delta, Snapshot, Subscribe
from kvstore.relay_core import RelayCore, Told
from tests.support.announcing import announce

NAMES = [bytes([i]) * 16 for i in range(12)]
LEASE = 3.0


def test_membership_changes_with_what_is_announced_and_with_nothing_else() -> None:
    directory = Directory(LEASE)
    seen = [directory.membership]

    def changed() -> bool:
        seen.append(directory.membership)
        return seen[-1] != seen[-2]

    directory.apply(announce(), 0.0)
    assert changed()
    directory.apply(Snapshot("prefill-0", "g0", 0, 0, 1, "gpu", NAMES[0]), 0.0)
    directory.apply(Delta("prefill-0", "g0", 1, "gpu", False, NAMES[1], b""), 0.0)
    directory.apply(announce(seq=1), 0.1)
    assert not changed()
    directory.apply(msgspec.structs.replace(announce(seq=1), state="draining"), 0.2)
    assert changed()
    directory.apply(announce(generation="g1"), 0.3)
    assert changed()
    directory.expire(0.3)
    assert not changed()
    directory.expire(100.0)
    assert changed()


def warm(directory: Directory, held: list[bytes], worker: str = "prefill-0", seq: int = 0) -> None:
    directory.apply(announce(worker), 0.0)
    directory.apply(Snapshot(worker, "g0", seq, 0, 1, "gpu", b"".join(held)), 0.0)


def change(seq: int, added: list[bytes], removed: list[bytes], cleared: bool = False) -> Delta:
    return Delta("prefill-0", "g0", seq, "gpu", cleared, b"".join(added), b"".join(removed))


def test_prefix_ends_at_the_first_hole_per_worker_and_tier() -> None:
    directory = Directory(LEASE)
    warm(directory, [NAMES[0], NAMES[1], NAMES[3]])
    warm(directory, [NAMES[1]], worker="prefill-1")
    directory.apply(Delta("prefill-0", "g0", 1, "dram", False, b"".join(NAMES), b""), 0.0)
    assert directory.held(NAMES[:5]) == {"prefill-0": Held(2, 5), "prefill-1": Held(0, 0)}
    assert directory.held([]) == {"prefill-0": Held(0, 0), "prefill-1": Held(0, 0)}


def test_a_gap_makes_the_worker_cold_until_a_snapshot_is_complete() -> None:
    directory = Directory(LEASE)
    warm(directory, [NAMES[0]])
    directory.apply(change(1, [NAMES[1]], []), 0.0)
    assert directory.wants("prefill-0") == ("g0", 1)
    directory.apply(change(3, [NAMES[2]], []), 0.0)
    assert directory.wants("prefill-0") == ("", 0)
    assert directory.held(NAMES)["prefill-0"].gpu == 0
    directory.apply(Snapshot("prefill-0", "g0", 3, 0, 2, "gpu", NAMES[0]), 0.0)
    assert directory.held(NAMES)["prefill-0"].gpu == 0
    assert directory.blocks("prefill-0", "gpu") == 0
    directory.apply(Snapshot("prefill-0", "g0", 3, 1, 2, "gpu", NAMES[1]), 0.0)
    assert directory.held(NAMES)["prefill-0"].gpu == 2


def test_an_announcement_ahead_of_the_changes_shows_a_gap() -> None:
    directory = Directory(LEASE)
    warm(directory, [NAMES[0]])
    directory.apply(announce(seq=1), 0.0)
    assert directory.wants("prefill-0") == ("", 0)


def test_a_new_generation_makes_cold_and_the_old_one_is_deaf() -> None:
    directory = Directory(LEASE)
    warm(directory, [NAMES[0]])
    directory.apply(announce(generation="g1"), 0.0)
    assert directory.held(NAMES)["prefill-0"].gpu == 0
    directory.apply(Snapshot("prefill-0", "g0", 9, 0, 1, "gpu", NAMES[0]), 0.0)
    directory.apply(change(1, [NAMES[0]], []), 0.0)
    assert directory.wants("prefill-0") == ("", 0)


def test_a_worker_lives_by_its_announcements_alone() -> None:
    directory = Directory(LEASE)
    warm(directory, [NAMES[0]])
    directory.apply(change(1, [NAMES[1]], []), 2.9)
    assert directory.expire(2.9) == []
    assert [known.worker for known in directory.workers("prefill")] == ["prefill-0"]
    assert directory.workers("decode") == []
    assert directory.expire(3.0) == ["prefill-0"]
    assert directory.held(NAMES) == {}
    assert directory.wants("prefill-0") == ("", 0)


def test_another_protocol_version_is_not_a_worker() -> None:
    directory = Directory(LEASE)
    directory.apply(msgspec.structs.replace(announce(), version=PROTOCOL_VERSION + 1), 0.0)
    assert directory.workers("prefill") == []


def cut(joined: bytes) -> frozenset[bytes]:
    return frozenset(joined[at : at + 16] for at in range(0, len(joined), 16))


class Feed(RuleBasedStateMachine):
    """One relay core, one directory, and messages in flight between them."""

    @initialize()
    def start(self) -> None:
        self.core = RelayCore(announce())
        self.copies: list[bytes] = []
        self.generation = 0
        self.history = {("g0", 0): frozenset[bytes]()}
        self.directory = Directory(LEASE)
        self.flight: list[Told] = []
        self.now = 0.0

    def sent(self, messages: list[Told]) -> None:
        now = self.core.announce
        for message in messages:
            if isinstance(message, Delta):
                known = (
                    frozenset()
                    if message.cleared
                    else self.history[now.generation, message.seq - 1]
                )
                known = known - cut(message.removed) | cut(message.added)
                self.history[now.generation, message.seq] = known
        self.history.setdefault((now.generation, now.seq), frozenset())
        assert self.history[now.generation, now.seq] == frozenset(self.copies)
        if self.core.subscribers:
            self.flight.extend(messages)

    def step(self, seconds: float) -> None:
        self.now += seconds

    @rule(names=st.lists(st.sampled_from(NAMES), max_size=9))
    def store(self, names: list[bytes]) -> None:
        self.copies.extend(names)
        self.sent([*self.core.apply("gpu", [Stored(tuple(names))])])

    @rule(choose=st.randoms(use_true_random=False), count=st.integers(0, 4))
    def evict(self, choose: random.Random, count: int) -> None:
        gone = choose.sample(self.copies, min(count, len(self.copies)))
        for name in gone:
            self.copies.remove(name)
        self.sent([*self.core.apply("gpu", [Removed(tuple(gone))])])

    @rule(then=st.lists(st.sampled_from(NAMES), max_size=3))
    def clear(self, then: list[bytes]) -> None:
        self.copies = list(then)
        self.sent([*self.core.apply("gpu", [Cleared(), Stored(tuple(then))])])

    @rule()
    def restart(self) -> None:
        self.copies, self.generation = [], self.generation + 1
        self.sent(self.core.restart(f"g{self.generation}"))

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5]))
    def subscribe(self, seconds: float) -> None:
        self.step(seconds)
        generation, seq = self.directory.wants("prefill-0")
        wish = Subscribe(version=PROTOCOL_VERSION, proxy="p", generation=generation, seq=seq)
        self.flight.extend(self.core.subscribe(b"p", wish, self.now))

    @rule()
    def announce(self) -> None:
        self.sent([self.core.announce])

    @rule()
    def relay_forgets_the_subscriber(self) -> None:
        self.core.drop(b"p")

    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        for message in self.flight[:count]:
            self.directory.apply(message, self.now)
        del self.flight[:count]

    @rule(choose=st.randoms(use_true_random=False))
    def lose(self, choose: random.Random) -> None:
        if self.flight:
            del self.flight[choose.randrange(len(self.flight))]

    @rule(choose=st.randoms(use_true_random=False))
    def repeat(self, choose: random.Random) -> None:
        if self.flight:
            self.flight.insert(choose.randrange(len(self.flight)), choose.choice(self.flight))

    @rule(choose=st.randoms(use_true_random=False))
    def reorder(self, choose: random.Random) -> None:
        choose.shuffle(self.flight)

    @rule(seconds=st.sampled_from([0.5, LEASE]))
    def expire(self, seconds: float) -> None:
        self.step(seconds)
        self.directory.expire(self.now)

    @rule()
    def quiet_network_heals(self) -> None:
        """With nothing lost any more, a few rounds make the directory know everything."""
        for _ in range(4):
            self.deliver(len(self.flight))
            self.subscribe(relay_core.SNAPSHOT_SECONDS)
            self.deliver(len(self.flight))
            self.announce()
        self.deliver(len(self.flight))
        now = self.core.announce
        assert self.directory.wants("prefill-0") == (now.generation, now.seq)

    @invariant()
    def a_warm_worker_is_known_exactly_as_it_was(self) -> None:
        generation, seq = self.directory.wants("prefill-0")
        truth = self.history[generation, seq] if generation else frozenset()
        for name in NAMES:
            known = self.directory.held([name]).get("prefill-0", Held(0, 0))
            assert known.gpu == (name in truth)
        assert self.directory.blocks("prefill-0", "gpu") == len(truth)


@pytest.fixture(autouse=True, scope="module")
def small_messages() -> Iterator[None]:
    """Makes snapshots of a dozen blocks come in several parts."""
    patch = pytest.MonkeyPatch()
    patch.setattr(relay_core, "_NAMES_PER_MESSAGE", 3)
    patch.setattr(relay_core, "_HISTORY", 4)
    yield
    patch.undo()


TestFeed = Feed.TestCase
TestFeed.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
