"""Pages for a worker half that is asked to overwrite some."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.wiping import Wiping


class CountedWipes:
    """``kvstore.wiping.Wipeable``; ``wiped`` has what was overwritten, in order."""

    def __init__(self) -> None:
        self.wiped: list[int] = []

    def wipe(self, blocks: Sequence[int]) -> None:
        self.wiped += blocks


def no_wiping() -> Wiping:
    """Of pages that nobody looks at."""
    return Wiping(CountedWipes())
