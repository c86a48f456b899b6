"""The table against a plain dict, through every size it grows to."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.block_table import ABSENT, BlockTable, Keys, Values


def keys(*numbers: int) -> Keys:
    return np.array(numbers, dtype=np.uint64)


def values(*numbers: int) -> Values:
    return np.array(numbers, dtype=np.uint32)


def scattered(count: int, seed: int = 0) -> Keys:
    found = np.random.default_rng(seed).integers(1, 1 << 63, count, dtype=np.uint64)
    assert len(np.unique(found)) == count
    return found


KEYS = st.lists(
    # Some of one bucket, and some whose two buckets are one.
    st.integers(1, 1 << 63) | st.integers(1, 40).map(lambda at: (at << 20) | 5),
    max_size=60,
    unique=True,
)


class Table(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = BlockTable(400)
        self.plain: dict[int, int] = {}

    @rule(numbers=KEYS, value=st.integers(1, 1000))
    def put(self, numbers: list[int], value: int) -> None:
        asked = keys(*numbers)
        slots = self.table.find(asked)
        known = slots != ABSENT
        self.table.replace(slots[known], np.full(known.sum(), value, dtype=np.uint32))
        new = asked[~known]
        refused = self.table.insert(new, np.full(len(new), value, dtype=np.uint32))
        found = self.table.find(asked) != ABSENT
        assert (~found).sum() == len(refused)
        assert set(refused.tolist()) <= {value}
        self.plain |= dict.fromkeys(asked[found].tolist(), value)

    @rule(numbers=KEYS)
    def remove(self, numbers: list[int]) -> None:
        chosen = [*numbers, *list(self.plain)[::3]]
        slots = self.table.find(keys(*dict.fromkeys(chosen)))
        self.table.remove(slots[slots != ABSENT])
        for number in chosen:
            self.plain.pop(number, None)

    @rule(start=st.integers(0, 80), count=st.integers(1, 80))
    def sweep(self, start: int, count: int) -> None:
        odd = {value for value in self.plain.values() if value % 2}
        gone = np.arange(1001) % 2 == 1
        swept = self.table.sweep(start, count, gone)
        assert set(swept.tolist()) <= odd
        found = self.table.find(keys(*self.plain)) != ABSENT
        left = dict(zip(self.plain, found.tolist(), strict=True))
        assert all(left[number] or value in odd for number, value in self.plain.items())
        self.plain = {number: value for number, value in self.plain.items() if left[number]}

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert len(self.table) == len(self.plain)
        asked = keys(*self.plain, 3, 4)
        found = self.table.values(self.table.find(asked))
        expected = [*self.plain.values(), self.plain.get(3, 0), self.plain.get(4, 0)]
        assert found.tolist() == expected


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_it_grows_bucket_by_bucket_and_finds_everything_on_the_way() -> None:
    table, all_keys = BlockTable(60_000), scattered(50_000)
    for at in range(0, len(all_keys), 1_000):
        assert len(table.insert(all_keys[at : at + 1_000], values(*range(at + 1, at + 1_001)))) == 0
        some = all_keys[: at + 1_000 : 7]
        assert table.values(table.find(some)).tolist() == list(range(1, at + 1_001, 7))
    assert (table.find(scattered(1_000, seed=1)) == ABSENT).all()
    assert table.nbytes / len(table) < 25


def test_it_is_small_while_little_is_in_it() -> None:
    table = BlockTable(1 << 24)
    table.insert(keys(5), values(1))
    assert table.nbytes < 10_000


def test_what_is_beyond_its_limit_is_refused() -> None:
    table, all_keys = BlockTable(1_000), scattered(1_200)
    refused = table.insert(all_keys, values(*range(1, 1_201)))
    assert sorted(refused.tolist()) == list(range(1_001, 1_201))
    assert len(table) == 1_000
    assert (table.find(all_keys[:1_000]) != ABSENT).all()
    assert (table.find(all_keys[1_000:]) == ABSENT).all()


@given(st.integers(17, 60))
@settings(deadline=None)
def test_more_keys_of_one_bucket_than_it_has_slots_are_refused_and_harm_nobody(count: int) -> None:
    """Hashes never come so; both buckets of these are number 5, whatever the table's size."""
    table, others = BlockTable(4_000), scattered(2_000)
    table.insert(others, values(*range(1, 2_001)))
    alike = [(5 << 32) | 5 | (at << 24) | (at << 56) for at in range(count)]
    refused = table.insert(keys(*alike), values(*range(10_000, 10_000 + count)))
    assert 0 < len(refused) < count
    assert len(table) == 2_000 + count - len(refused)
    assert table.values(table.find(others)).tolist() == list(range(1, 2_001))


def test_full_buckets_give_way_to_their_other_ones() -> None:
    table, all_keys = BlockTable(500), scattered(500, seed=3)
    assert len(table.insert(all_keys, values(*range(1, 501)))) == 0
    assert table.values(table.find(all_keys)).tolist() == list(range(1, 501))
