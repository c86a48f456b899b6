"""Digests made on a device: what they see, and that every machine makes the same ones."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvstore.device_digest import DIGEST_BYTES, block_digests

BLOCK = 96
MASK = (1 << 64) - 1


def run_of(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int8)


@given(st.binary(min_size=BLOCK, max_size=BLOCK), st.integers(0, 8 * BLOCK - 1))
def test_one_flipped_bit_changes_both_sums(data: bytes, bit: int) -> None:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    (before,) = block_digests(run_of(data), BLOCK)
    (after,) = block_digests(run_of(bytes(damaged)), BLOCK)
    assert before[:8] != after[:8]
    assert before[8:] != after[8:]


@given(st.sets(st.integers(0, BLOCK // 4 - 1), min_size=2))
def test_top_bits_flipped_in_many_halves_are_seen(halves: set[int]) -> None:
    damaged = bytearray(BLOCK)
    for half in halves:
        damaged[4 * half + 3] ^= 0x80
    assert block_digests(run_of(bytes(damaged)), BLOCK) != block_digests(
        run_of(bytes(BLOCK)), BLOCK
    )


def test_two_halves_that_change_places_are_seen() -> None:
    data = bytes(range(BLOCK))
    swapped = data[4:8] + data[:4] + data[8:]
    assert block_digests(run_of(data), BLOCK) != block_digests(run_of(swapped), BLOCK)


def test_every_block_has_a_digest_of_its_own_bytes() -> None:
    random = torch.Generator().manual_seed(3)
    run = torch.randint(-128, 128, (3 * BLOCK,), dtype=torch.int8, generator=random)
    together = block_digests(run, BLOCK)
    apart = [block_digests(run[at : at + BLOCK], BLOCK)[0] for at in range(0, 3 * BLOCK, BLOCK)]
    assert list(together) == apart
    assert len(set(together)) == 3
    assert {len(digest) for digest in together} == {DIGEST_BYTES}


def test_the_sums_are_exact_modulo_two_to_the_64th() -> None:
    """And never change: two versions of kvferry on two ends must agree."""
    data = bytes(range(24))
    (found,) = block_digests(run_of(data), 24)
    assert found.hex() == "a440de3f3f9445a27c5b0cbdf86d1cd4"  # with Python's own integers
