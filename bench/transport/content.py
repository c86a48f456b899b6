"""The bytes that are moved: every block has its own, so that one in the wrong place is seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.transport.case import BLOCK_BYTES, Case

Pages = npt.NDArray[np.uint8]
"""``[blocks, BLOCK_BYTES]``, contiguous, every page of it touched."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_WORDS = np.random.default_rng(4).integers(1, 1 << 63, BLOCK_BYTES // 8, dtype=np.uint64)


def block(number: int) -> npt.NDArray[np.uint64]:
    """What block ``number`` of the sender holds: no word of it is any other block's."""
    return _WORDS + np.uint64(number) * _STEP


def supplied(blocks: int) -> Pages:
    """The sender's pages."""
    words = np.empty((blocks, BLOCK_BYTES // 8), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for number in range(blocks):
            words[number] = block(number)
    return words.view(np.uint8)


def awaiting(blocks: int) -> Pages:
    """The receiver's pages, wiped."""
    return np.full((blocks, BLOCK_BYTES), 0, dtype=np.uint8)


def wrong_blocks(received: Pages, case: Case, held: int) -> int:
    """How many of the receiver's pages do not hold, bit for bit, what the sender's do."""
    words = received.view(np.uint64)
    pairs = zip(case.pages("sender", held), case.pages("receiver", held), strict=True)
    with np.errstate(over="ignore"):
        return sum(not np.array_equal(words[there], block(here)) for here, there in pairs)
