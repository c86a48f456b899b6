"""What stub workers say they hold is what an engine with the same prompts would."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from bench.routing.holdings import Chains, Holding, alike
from kvstore.blockhash import block_chain, block_names

SIZE = 4
TOKENS = st.lists(st.integers(0, 2), max_size=30)


@given(st.lists(st.tuples(TOKENS, st.sampled_from("ab")), max_size=8))
def test_a_chain_continued_is_the_chain(prompts: list[tuple[list[int], str]]) -> None:
    chains = Chains(SIZE)
    for tokens, salt in prompts:
        assert chains.names(tokens, salt) == block_names(block_chain(tokens, SIZE, salt))


@given(TOKENS, TOKENS)
def test_how_much_is_alike(one: list[int], other: list[int]) -> None:
    found = alike(one, other)
    assert one[:found] == other[:found]
    assert one[found : found + 1] != other[found : found + 1] or found == len(one) == len(other)


@given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 9), unique=True), max_size=8))
def test_what_is_told_adds_up_to_what_is_held(capacity: int, prompts: list[list[int]]) -> None:
    holding = Holding(capacity)
    told: set[bytes] = set()
    used: OrderedDict[bytes, None] = OrderedDict()
    for prompt in prompts:
        names = [bytes([number]) for number in prompt]
        added, gone = holding.keep(names)
        assert not told & set(added)
        assert set(gone) <= told
        told = (told | set(added)) - set(gone)
        for name in reversed(names):
            used.pop(name, None)
            used[name] = None
        while len(used) > capacity:
            used.popitem(last=False)
        assert told == set(used)
