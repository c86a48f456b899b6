"""Stands in for vLLM's block pool where a prefill worker holds blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class CountedHolds:
    """``prefill.scheduling.BlockHolds``; ``held`` counts."""

    def __init__(self) -> None:
        self.held: Counter[int] = Counter()

    def hold(self, block_ids: Sequence[int]) -> None:
        self.held.update(block_ids)

    def release(self, block_ids: Sequence[int]) -> None:
        self.held.subtract(block_ids)
        assert min(self.held.values()) >= 0, "released more often than held"
        self.held = +self.held
