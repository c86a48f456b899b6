"""Cases and their bytes: what is moved from where to where, and what is found to be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.transport import content
from bench.transport.case import BLOCK_BYTES, SIDES, Case, Side, bytes_of, told_bytes

HELD = 12
RANDOM = Case(8, "random")


@pytest.mark.parametrize("side", SIDES)
def test_random_pages_are_so_many_different_ones_in_no_order(side: Side) -> None:
    pages = Case(100, "random").pages(side, 400)
    assert len(set(pages)) == 100
    assert set(pages) <= set(range(400))
    assert pages != sorted(pages)
    assert pages == Case(100, "random").pages(side, 400)


def test_the_two_sides_have_unlike_pages() -> None:
    assert RANDOM.pages("sender", HELD) != RANDOM.pages("receiver", HELD)


def test_contiguous_pages_follow_each_other_on_both_sides() -> None:
    assert [Case(3).pages(side, HELD) for side in SIDES] == [[0, 1, 2], [0, 1, 2]]


def test_what_is_gathered_ends_in_contiguous_memory() -> None:
    case = Case(8, "gathered")
    assert case.pages("receiver", HELD) == list(range(8))
    assert case.pages("sender", HELD) == RANDOM.pages("sender", HELD)


def test_a_side_that_holds_less_is_refused() -> None:
    with pytest.raises(ValueError, match="13 blocks of 12"):
        Case(13).pages("sender", HELD)


def test_transfers_share_the_blocks_out() -> None:
    case = Case(1000, "random", 100)
    positions = [at for number in range(100) for at in range(1000)[case.share(number)]]
    assert positions == list(range(1000))


def test_small_cases_are_repeated_and_large_ones_are_not() -> None:
    assert [Case(1 << bits).repeats for bits in (0, 4, 8, 10, 12, 14)] == [100, 100, 16, 4, 1, 1]


@given(st.integers(min_value=1, max_value=1 << 40))
def test_a_size_that_is_told_is_read_again(count: int) -> None:
    assert bytes_of(told_bytes(count)) == pytest.approx(count, rel=1e-5)


def test_a_size_may_be_a_plain_number() -> None:
    assert (bytes_of("65536"), bytes_of("64KiB"), bytes_of("1.5 MiB")) == (65536, 65536, 1572864)
    with pytest.raises(ValueError, match="much"):
        bytes_of("much")


def arrived() -> tuple[content.Pages, content.Pages]:
    """The sender's pages, and the receiver's after everything has been moved."""
    here, there = content.supplied(HELD), content.awaiting(HELD)
    there[RANDOM.pages("receiver", HELD)] = here[RANDOM.pages("sender", HELD)]
    return here, there


def test_what_has_arrived_is_right() -> None:
    assert content.wrong_blocks(arrived()[1], RANDOM, HELD) == 0


def test_nothing_that_arrived_is_all_wrong() -> None:
    assert content.wrong_blocks(content.awaiting(HELD), RANDOM, HELD) == 8


def test_one_bit_makes_a_block_wrong() -> None:
    _, there = arrived()
    there[RANDOM.pages("receiver", HELD)[3], BLOCK_BYTES - 1] ^= 1
    assert content.wrong_blocks(there, RANDOM, HELD) == 1


def test_blocks_in_each_others_place_are_wrong() -> None:
    _, there = arrived()
    first, second = RANDOM.pages("receiver", HELD)[:2]
    there[[first, second]] = there[[second, first]]
    assert content.wrong_blocks(there, RANDOM, HELD) == 2


def test_no_word_of_a_block_is_another_blocks() -> None:
    words = content.supplied(HELD).view(np.uint64)
    assert all(len(set(column)) == HELD for column in words.T[::64].tolist())
