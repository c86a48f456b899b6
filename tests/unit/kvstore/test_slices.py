"""Which KV heads travel between which ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import ConfigError
from kvstore.layout import KVLayout
from kvstore.slices import HeadSlice, slice_address, slices_of_rank


def test_equal_ranks_have_one_slice_each() -> None:
    assert slices_of_rank(2, 2, 0, 2) == (HeadSlice(0, 2, 0, 1),)
    assert slices_of_rank(2, 2, 1, 2) == (HeadSlice(1, 2, 0, 1),)
    assert slices_of_rank(3, 1, 0, 1) == (HeadSlice(0, 1, 0, 3),)


def test_fewer_ranks_have_several_slices() -> None:
    assert slices_of_rank(8, 4, 1, 2) == (HeadSlice(2, 4, 0, 2), HeadSlice(3, 4, 2, 4))


@given(
    each=st.integers(1, 4), prefill=st.sampled_from([1, 2, 3]), decode=st.sampled_from([1, 2, 4])
)
def test_every_head_goes_to_the_rank_that_holds_it(each: int, prefill: int, decode: int) -> None:
    count = {(1, 4): 4, (2, 4): 4, (3, 2): 6, (3, 4): 12}.get(
        (prefill, decode), max(prefill, decode)
    )
    heads = each * count

    def held(ranks: int) -> dict[int, list[int]]:
        """For each slice the model's heads that are in it."""
        return {
            part.number: [rank * heads // ranks + at for at in range(part.first, part.stop)]
            for rank in range(ranks)
            for part in slices_of_rank(heads, count, rank, ranks)
        }

    assert held(prefill) == held(decode)
    assert sorted(head for part in held(decode).values() for head in part) == list(range(heads))


def test_heads_that_ranks_would_hold_copies_of_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 KV heads cannot be cut into 2 slices"):
        slices_of_rank(3, 2, 0, 2)
    with pytest.raises(ConfigError, match="2 KV heads cannot be cut into 4 slices"):
        slices_of_rank(2, 4, 0, 4)
    with pytest.raises(ConfigError, match="2 slices cannot be shared out to 3 ranks"):
        slices_of_rank(6, 2, 0, 3)


@pytest.mark.parametrize(
    ("address", "second"),
    [
        ("zmq+ipc:///run/prefill-0.ship", "zmq+ipc:///run/prefill-0.ship.1"),
        ("auto:///run/prefill-0.ship", "auto:///run/prefill-0.ship.1"),
        ("ipc:///run/decode-0.abandon", "ipc:///run/decode-0.abandon.1"),
        ("zmq+tcp://127.0.0.1:7101", "zmq+tcp://127.0.0.1:7105"),
        ("zmq+tcp://[::1]:7101", "zmq+tcp://[::1]:7105"),
        ("auto://host:99999", "auto://host:100003"),
    ],
)
def test_every_slice_has_an_address(address: str, second: str) -> None:
    assert slice_address(address, 0) == address
    assert slice_address(address, 1) == second


def test_a_slice_is_the_same_whatever_holds_it() -> None:
    one = KVLayout("m", "e", "bf16", "auto", "LBHNC", "cpu", 32, 2, 8, 0, 1)
    two = KVLayout("m", "e", "bf16", "auto", "LBHNC", "cpu", 32, 2, 4, 1, 2)
    (part,) = slices_of_rank(2, 2, 1, 2)
    whole = slices_of_rank(2, 2, 0, 1)
    assert two.of_slice(part, 4).fingerprint == one.of_slice(whole[1], 4).fingerprint
    assert two.of_slice(part, 4).fingerprint != one.of_slice(whole[0], 4).fingerprint
