"""Numbered sets against plain ones."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.holder_sets import EMPTY, HolderSets

BITS = [1 << at for at in (0, 1, 2, 70)]


class Sets(RuleBasedStateMachine):
    """Blocks that carry a set's number, and what each should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.sets = HolderSets(1000)
        self.carried: dict[int, int] = dict.fromkeys(range(20), EMPTY)
        self.plain: dict[int, int] = dict.fromkeys(range(20), 0)

    @rule(
        blocks=st.sets(st.integers(0, 19), min_size=1),
        bit=st.sampled_from(BITS),
        held=st.booleans(),
    )
    def change(self, blocks: set[int], bit: int, held: bool) -> None:
        chosen = sorted(blocks)
        before = np.array([self.carried[one] for one in chosen], dtype=np.uint32)
        after, differ = self.sets.changed(before, bit, held=held)
        wanted = [self.plain[one] | bit if held else self.plain[one] & ~bit for one in chosen]
        assert differ == sum(
            self.plain[one] != mask for one, mask in zip(chosen, wanted, strict=True)
        )
        self.carried |= dict(zip(chosen, after.tolist(), strict=True))
        self.plain |= dict(zip(chosen, wanted, strict=True))

    @rule(bit=st.sampled_from(BITS))
    def strike(self, bit: int) -> None:
        self.sets.strike(bit)
        self.plain = {one: mask & ~bit for one, mask in self.plain.items()}

    @rule()
    def sweep(self) -> None:
        struck = [one for one, number in self.carried.items() if self.sets.struck[number]]
        assert all(self.plain[one] == 0 for one in struck)
        self.sets.forget(np.array([self.carried[one] for one in struck], dtype=np.uint32))
        self.carried |= dict.fromkeys(struck, EMPTY)

    @invariant()
    def every_block_has_its_set(self) -> None:
        for block, number in self.carried.items():
            assert self.sets.mask(number) == self.plain[block]

    @invariant()
    def only_what_is_carried_is_kept(self) -> None:
        assert len(self.sets) == len({*self.carried.values(), EMPTY})


TestSets = Sets.TestCase
TestSets.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def test_a_set_too_many_is_the_empty_one() -> None:
    sets = HolderSets(3)
    nothing = np.zeros(1, dtype=np.uint32)
    made = [sets.changed(nothing, 1 << at, held=True)[0][0] for at in range(3)]
    assert [sets.mask(number) for number in made] == [1, 2, 0]
    assert sets.refused == 1
