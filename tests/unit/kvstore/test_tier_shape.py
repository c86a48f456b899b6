"""Which blocks the tier's objects hold, of models with and without sliding windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import ConfigError
from kvstore.layout import KVGroup
from kvstore.tier_shape import TierShape

FULL, SLIDING = KVGroup(("f",)), KVGroup(("s",), 10)


def test_a_chunk_holds_full_attention_position_by_position() -> None:
    shape = TierShape((FULL, SLIDING, FULL), 4, 8)
    assert shape.chunks(8, 16) == [(0, 2), (2, 2), (0, 3), (2, 3)]
    assert (shape.chunk_blocks, shape.windowed) == (4, True)


def test_a_window_holds_what_the_last_token_before_its_end_attends_to() -> None:
    shape = TierShape((SLIDING, FULL, SLIDING), 4, 8)
    # Token 23 attends to 14 … 23, which lie in the blocks 3, 4 and 5.
    assert shape.window(24) == [(0, 3), (2, 3), (0, 4), (2, 4), (0, 5), (2, 5)]
    assert shape.window(8) == [(0, 0), (2, 0), (0, 1), (2, 1)]


def test_full_attention_alone_has_no_windows() -> None:
    shape = TierShape((FULL,), 4, 8)
    assert (shape.windowed, shape.window(24), shape.window_blocks) == (False, [], 0)


@given(
    window=st.integers(1, 200),
    block=st.sampled_from([1, 4, 16, 32]),
    chunk=st.integers(1, 5),
    chunks=st.integers(1, 40),
)
def test_no_window_is_larger_than_its_slot_and_all_that_is_attended_to_is_in_it(
    window: int, block: int, chunk: int, chunks: int
) -> None:
    shape = TierShape((FULL, KVGroup(("s",), window)), block, chunk * block)
    end = chunks * chunk * block
    places = shape.window(end)
    assert len(places) <= shape.window_blocks
    held = {position for _, position in places}
    for computed in (end - 1, end):
        attended = range(max(0, computed - window + 1), end)
        assert {token // block for token in attended} <= held


def test_chunks_must_be_whole_blocks() -> None:
    with pytest.raises(ConfigError, match="must be a multiple of the engine's block size"):
        TierShape((FULL,), 32, 48)


@pytest.mark.parametrize(
    ("computed", "first"), [(0, 0), (9, 0), (12, 0), (13, 1), (16, 1), (17, 2), (100, 22)]
)
def test_a_sliding_group_lives_from_where_the_next_token_looks(computed: int, first: int) -> None:
    assert SLIDING.first_live(computed, 4) == first
    assert FULL.first_live(computed, 4) == 0
