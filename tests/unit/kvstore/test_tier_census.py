"""What the DRAM tier is said to hold, against a plain model of the objects in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore import tier_census
from kvstore.engine_events import Cleared, Event, Removed, Stored
from kvstore.tier_census import TierCensus

SCOPES = ["model/1", "model/2"]
PARTS = {"model/1": 1, "model/2": 2}
NAMES = [bytes([number]) * 32 for number in range(4)]
"""Of chunks of two blocks each."""

KEYS = [("model/1", NAMES[0], 0), ("model/1", NAMES[1], 0)]
KEYS += [("model/2", NAMES[0], part) for part in range(2)]
SOME = st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True)

Key = tuple[str, bytes, int]


def blocks(names: bytes) -> tuple[bytes, ...]:
    return names[:16], names[16:]


def apply(held: set[bytes], events: Sequence[Event]) -> None:
    for event in events:
        match event:
            case Cleared():
                held.clear()
            case Stored(names):
                assert held.isdisjoint(names)
                held.update(names)
            case Removed(names):
                assert held.issuperset(names)
                held.difference_update(names)


class Censuses(RuleBasedStateMachine):
    """``vouched``: objects that were filed while they were reserved; ``readable``: those stored."""

    def __init__(self) -> None:
        super().__init__()
        self.census = TierCensus()
        self.reserved: set[Key] = set()
        self.vouched: set[Key] = set()
        self.readable: set[Key] = set()
        self.told: dict[str, set[bytes]] = {scope: set() for scope in SCOPES}

    @rule(keys=SOME)
    def reserve(self, keys: list[Key]) -> None:
        """Also what is reserved already, whose first writer was too slow, or stored."""
        self.census.reserved(keys)
        self.vouched -= set(keys) - self.readable
        self.reserved |= set(keys) - self.readable

    @rule(keys=SOME)
    def file(self, keys: list[Key]) -> None:
        for key in keys:
            scope, names, _ = key
            self.census.filed(scope, PARTS[scope], [(key, names)])
        self.vouched |= set(keys) & self.reserved

    @rule(keys=SOME)
    def store(self, keys: list[Key]) -> None:
        """Filed or not: LMCache publishes what a dead worker had reserved."""
        self.census.stored(keys)
        self.readable |= set(keys)
        self.reserved -= set(keys)

    @rule(keys=SOME)
    def go(self, keys: list[Key]) -> None:
        """Evicted, deleted, or never stored at all."""
        self.census.gone(keys)
        for known in (self.reserved, self.vouched, self.readable):
            known.difference_update(keys)

    @rule(keys=SOME)
    def renew(self, keys: list[Key]) -> None:
        self.reserve(keys)
        self.file(keys)
        self.store(keys)

    @rule(keys=SOME)
    def give_to_another_writer(self, keys: list[Key]) -> None:
        """The first one had all but stored it; what the second one does comes later."""
        self.reserve(keys)
        self.file(keys)
        self.reserve(keys)

    @rule()
    def clear(self) -> None:
        self.go(KEYS)

    @rule()
    def drain(self) -> None:
        for scope, events in self.census.drain().items():
            apply(self.told[scope], events)
        for scope in SCOPES:
            assert self.told[scope] == self.loadable(scope)

    def loadable(self, scope: str) -> set[bytes]:
        there = self.vouched & self.readable
        whole = [
            names
            for names in NAMES
            if all((scope, names, part) in there for part in range(PARTS[scope]))
        ]
        return {block for names in whole for block in blocks(names)}

    @invariant()
    def it_knows_no_more_objects_than_there_are(self) -> None:
        assert len(self.census) == len(self.reserved | self.readable)

    def teardown(self) -> None:
        self.drain()
        self.clear()
        self.drain()
        assert not self.census._chunks


class Overflowing(Censuses):
    """The same where more happens than is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tier_census, "MAX_CHANGES", 2)

    def teardown(self) -> None:
        super().teardown()
        self.patch.undo()


Censuses.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
Overflowing.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestCensuses = Censuses.TestCase
TestOverflowing = Overflowing.TestCase


def test_changes_beyond_the_bound_are_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_census, "MAX_CHANGES", 1)
    census = TierCensus()
    keys = [("model/1", names, 0) for names in NAMES]
    for key in keys:
        census.reserved([key])
        census.filed("model/1", 1, [(key, key[1])])
        census.stored([key])
    census.gone(keys[:2])
    (told,) = census.drain().values()
    assert told == [Cleared(), Stored(blocks(NAMES[2])), Stored(blocks(NAMES[3]))]
    assert census.drain() == {}


def test_what_nobody_has_filed_is_not_held() -> None:
    """Its worker died: LMCache publishes what it had reserved, and filing it then is too late."""
    census = TierCensus()
    census.reserved(["a"])
    census.stored(["a"])
    census.filed("model/2", 2, [("a", NAMES[0])])
    census.filed("model/2", 2, [("never reserved", NAMES[0])])
    assert len(census) == 1
    renew(census, "b")
    assert census.drain() == {}
    census.gone(["a"])
    renew(census, "a")
    assert census.drain() == {"model/2": [Stored(blocks(NAMES[0]))]}


def renew(census: TierCensus, key: str) -> None:
    census.reserved([key])
    census.filed("model/2", 2, [(key, NAMES[0])])
    census.stored([key])
