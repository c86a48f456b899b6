"""The directory against one that keeps plain sets: many workers, bursts, gaps, holes, leases."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore import index
from kvstore.index import Directory, Held
from kvstore.messages import Announce, Delta, Snapshot, Tier
from tests.support.announcing import announce

NAMES = [hashlib.sha256(bytes([at])).digest()[:16] for at in range(60)]
WORKERS = [f"w{at}" for at in range(3)]
TIERS: list[Tier] = ["gpu", "dram"]
LEASE = 10.0

BLOCKS = st.sets(st.integers(0, 9) | st.integers(0, len(NAMES) - 1), max_size=20)
Message = Announce | Snapshot | Delta


@dataclass
class Known:
    generation: str
    lease_until: float
    seq: int | None = None
    parts: tuple[int, int, int] | None = None
    held: dict[Tier, set[bytes]] = field(default_factory=lambda: {tier: set() for tier in TIERS})

    def chill(self) -> None:
        self.seq, self.parts = None, None
        self.held = {tier: set() for tier in TIERS}


class Plain:
    """What a directory is to do, worker by worker and name by name."""

    def __init__(self) -> None:
        self.workers: dict[str, Known] = {}

    def apply(self, message: Message, now: float) -> None:
        known = self.workers.get(message.worker)
        if isinstance(message, Announce):
            if known is None:
                self.workers[message.worker] = Known(message.generation, now + LEASE)
                return
            if known.generation != message.generation or (
                known.seq is not None and message.seq > known.seq
            ):
                known.chill()
            known.generation, known.lease_until = message.generation, now + LEASE
        elif known is None or known.generation != message.generation:
            return
        elif isinstance(message, Snapshot):
            self._take_part(known, message)
        elif known.seq is None or message.seq > known.seq + 1:
            known.chill()
        elif message.seq == known.seq + 1:
            held = set() if message.cleared else known.held[message.tier]
            known.held[message.tier] = held - cut(message.removed) | cut(message.added)
            known.seq = message.seq

    def _take_part(self, known: Known, part: Snapshot) -> None:
        if known.seq is not None and part.seq <= known.seq:
            return
        if part.part == 0:
            known.chill()
            known.parts = (part.seq, part.parts, 0)
        if known.parts != (part.seq, part.parts, part.part):
            known.chill()
            return
        known.held[part.tier] |= cut(part.held)
        known.parts = (part.seq, part.parts, part.part + 1)
        if part.part + 1 == part.parts:
            known.seq, known.parts = part.seq, None

    def expire(self, now: float) -> list[str]:
        gone = [name for name, known in self.workers.items() if known.lease_until <= now]
        for name in gone:
            del self.workers[name]
        return gone

    def held(self, names: list[bytes]) -> dict[str, Held]:
        return {
            name: Held(
                *(prefix(known.held[tier], names) if known.seq is not None else 0 for tier in TIERS)
            )
            for name, known in self.workers.items()
        }


def cut(joined: bytes) -> set[bytes]:
    return {joined[at : at + 16] for at in range(0, len(joined), 16)}


def joined(blocks: set[int]) -> bytes:
    return b"".join(NAMES[at] for at in sorted(blocks))


def prefix(held: set[bytes], names: list[bytes]) -> int:
    return next((at for at, name in enumerate(names) if name not in held), len(names))


class Directories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.subject, self.plain = Directory(LEASE, max_blocks=1000), Plain()
        self.now = 0.0
        self.burst: list[Message] = []

    def send(self, message: Message) -> None:
        self.burst.append(message)
        self.plain.apply(message, self.now)

    @rule(worker=st.sampled_from(WORKERS), generation=st.sampled_from("ggggh"), ahead=st.booleans())
    def announce(self, worker: str, generation: str, ahead: bool) -> None:
        known = self.plain.workers.get(worker)
        seq = (known.seq or 0) + ahead if known else 0
        self.send(announce(worker, generation, seq))

    @rule(
        worker=st.sampled_from(WORKERS),
        pieces=st.lists(st.tuples(st.sampled_from(TIERS), BLOCKS), min_size=1, max_size=3),
        skip=st.sampled_from([None, None, 0, 1, 1]),
        ahead=st.integers(0, 2),
    )
    def snapshot(
        self,
        worker: str,
        pieces: list[tuple[Tier, set[int]]],
        skip: int | None,
        ahead: int,
    ) -> None:
        known = self.plain.workers.get(worker)
        generation = known.generation if known else "g"
        seq = (known.seq if known and known.seq is not None else 0) + ahead
        for at, (tier, blocks) in enumerate(pieces):
            if at != skip:
                part = Snapshot(worker, generation, seq, at, len(pieces), tier, joined(blocks))
                self.send(part)

    @rule(
        worker=st.sampled_from(WORKERS),
        changes=st.lists(
            st.tuples(
                st.sampled_from(TIERS), BLOCKS, BLOCKS, st.sampled_from([False] * 5 + [True])
            ),
            min_size=1,
            max_size=5,
        ),
        jump=st.sampled_from([1] * 6 + [0, 2]),
    )
    def change(
        self,
        worker: str,
        changes: list[tuple[Tier, set[int], set[int], bool]],
        jump: int,
    ) -> None:
        known = self.plain.workers.get(worker)
        generation, seq = (known.generation, known.seq or 0) if known else ("g", 0)
        for at, (tier, added, removed, cleared) in enumerate(changes):
            number = seq + jump + at
            delta = Delta(worker, generation, number, tier, cleared, joined(added), joined(removed))
            self.send(delta)

    @rule(worker=st.sampled_from(WORKERS), added=BLOCKS)
    def old_generation(self, worker: str, added: set[int]) -> None:
        self.send(Delta(worker, "old", 1, "gpu", False, joined(added), b""))

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.arrive()
        self.now += seconds
        assert sorted(self.subject.expire(self.now)) == sorted(self.plain.expire(self.now))

    @rule()
    def arrive(self) -> None:
        self.subject.apply_all(self.burst, self.now)
        self.burst = []

    @rule(order=st.permutations(range(10)) | st.permutations(range(30)), count=st.integers(0, 30))
    def look_up(self, order: list[int], count: int) -> None:
        self.arrive()
        names = [NAMES[at] for at in order[:count]]
        assert self.subject.held(names) == self.plain.held(names)

    @rule(worker=st.sampled_from(WORKERS), tier=st.sampled_from(TIERS))
    def look_up_what_one_holds(self, worker: str, tier: Tier) -> None:
        """Or what came of a snapshot that is not complete, which nobody may see."""
        self.arrive()
        if known := self.plain.workers.get(worker):
            names = [*sorted(known.held[tier]), NAMES[0]]
            assert self.subject.held(names) == self.plain.held(names)

    @invariant()
    def it_asks_for_what_comes_next(self) -> None:
        if self.burst:
            return
        for name, known in self.plain.workers.items():
            warm = known.seq is not None
            assert self.subject.wants(name) == ((known.generation, known.seq) if warm else ("", 0))
            for tier in TIERS:
                assert self.subject.blocks(name, tier) == (len(known.held[tier]) if warm else 0)

    def teardown(self) -> None:
        """Nothing is left of workers that are gone."""
        self.arrive()
        self.now += 2 * LEASE
        self.subject.expire(self.now)
        assert len(self.subject) == 0


@pytest.fixture(autouse=True)
def swept_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone lingers, and table and sets change under the broom."""
    monkeypatch.setattr(index, "_SWEPT_AT_ONCE", 2)


def test_what_is_one_too_many_is_not_held() -> None:
    directory = Directory(LEASE, max_blocks=6)
    directory.apply(announce("w0", "g"), 0.0)
    directory.apply(Snapshot("w0", "g", 0, 0, 1, "gpu", joined(set(range(9)))), 0.0)
    assert directory.blocks("w0", "gpu") == 6
    assert directory.refused == 3
    directory.apply(Delta("w0", "g", 1, "gpu", False, b"", joined(set(range(9)))), 0.0)
    assert (directory.blocks("w0", "gpu"), len(directory)) == (0, 0)


TestDirectories = Directories.TestCase
TestDirectories.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
