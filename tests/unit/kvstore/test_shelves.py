"""Shelves against a model that looks at everything each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.shelves import Shelves

CAPACITY = 100
TAGS = st.sampled_from(["a", "b", "c"])
KEYS = st.integers(0, 12)
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


class ShelvesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shelves: Shelves[int] = Shelves(CAPACITY)
        self.things: dict[int, tuple[str, int]] = {}  # oldest first, of all
        self.shares: dict[str, tuple[float, float]] = {}

    @rule(tag=TAGS, key=KEYS, size=st.integers(1, 30))
    def put(self, tag: str, key: int, size: int) -> None:
        self.shelves.put(tag, key, size)
        self.things.pop(key, None)
        self.things[key] = tag, size

    @rule(key=KEYS)
    def touch(self, key: int) -> None:
        self.shelves.touch(key)
        if key in self.things:
            self.things[key] = self.things.pop(key)

    @rule(key=KEYS)
    def remove(self, key: int) -> None:
        assert self.shelves.remove(key) == (self.things.pop(key, None) is not None)

    @rule(tag=TAGS, floor=SHARES, limit=SHARES)
    def share(self, tag: str, floor: float, limit: float) -> None:
        self.shelves.share(tag, floor, limit)
        self.shares[tag] = floor, limit

    def kept(self, tag: str) -> int:
        return sum(size for whose, size in self.things.values() if whose == tag)

    @invariant()
    def is_as_the_model(self) -> None:
        tags = {whose for whose, _ in self.things.values()}
        assert self.shelves.kept == {tag: self.kept(tag) for tag in tags}
        assert len(self.shelves) == len(self.things)
        for tag in ("a", "b", "c"):
            _, limit = self.shares.get(tag, (0.0, 1.0))
            assert self.shelves.excess(tag) == max(0, self.kept(tag) - int(limit * CAPACITY))
            mine = [key for key, (whose, _) in self.things.items() if whose == tag]
            assert list(self.shelves.of(tag)) == mine
            assert self.shelves.kept_of(tag) == self.kept(tag)
            assert self.shelves.limit(tag) == int(limit * CAPACITY)
        for key, (_, size) in self.things.items():
            assert self.shelves.size(key) == size

    @invariant()
    def who_borrowed_most_gives(self) -> None:
        borrowed = {tag: self.borrowed(tag) for tag in ("a", "b", "c")}
        for but in ((), ("a",), ("a", "c"), ("a", "b", "c")):
            found = self.shelves.borrower(but)
            most = max((borrowed[tag] for tag in borrowed if tag not in but), default=0)
            assert (found is None) == (most <= 0)
            assert found is None or (found not in but and borrowed[found] == most)
        for tag, now in borrowed.items():
            assert self.shelves.borrowed(tag) == max(0, now)
            assert self.shelves.borrowed(tag, 7) == max(0, now + 7)

    def borrowed(self, tag: str) -> int:
        return self.kept(tag) - int(self.shares.get(tag, (0.0, 1.0))[0] * CAPACITY)


TestShelves = ShelvesMachine.TestCase


@given(st.integers(1, 400))
def test_who_floods_evicts_its_own(flood: int) -> None:
    shelves: Shelves[tuple[str, int]] = Shelves(50)
    for number in range(10):
        shelves.put("quiet", ("quiet", number), 1)
    for number in range(flood):
        while sum(shelves.kept.values()) >= shelves.capacity:
            giver = shelves.borrower()
            assert giver is not None
            shelves.remove(next(shelves.of(giver)))
        shelves.put("loud", ("loud", number), 1)
    assert shelves.kept["quiet"] == 10


def test_the_heap_of_borrowers_does_not_grow() -> None:
    shelves: Shelves[int] = Shelves(10_000)
    for number in range(5_000):
        shelves.put("a", number % 1_000, 1)
    assert len(shelves._borrowers) < 100
