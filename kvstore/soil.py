"""Blocks whose bytes are to be overwritten before anybody else may read them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice


class Soil:
    """Block ids in the order in which they became soiled."""

    def __init__(self) -> None:
        self._since: dict[int, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._since)

    def add(self, block: int) -> None:
        """``block`` is to be overwritten."""
        if block not in self._since:
            self._count += 1
            self._since[block] = self._count

    def take(self, most: int, urgent: Callable[[int], bool]) -> list[int]:
        """All ``urgent`` ones and the ``most`` oldest of the others; they count as clean now."""
        taken = [block for block in self._since if urgent(block)]
        taken += islice((block for block in self._since if not urgent(block)), most)
        for block in taken:
            del self._since[block]
        return taken

    def mark(self) -> int:
        """For ``clean_since``: what has become soiled by now."""
        return self._count

    def clean_since(self, mark: int) -> bool:
        """Whether all that was soiled at ``mark`` has been taken."""
        return next(iter(self._since.values()), mark + 1) > mark
