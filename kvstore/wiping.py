"""Blocks of an engine that are to be overwritten: what one half orders, the other carries out.

The order goes with an engine step and is carried out before that step's forward pass, so a block
may be given to another request in the very step in which it is overwritten. That it has been is
told with the same step's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Wipes:
    """One step's order: its ``number``, counted from 1, and block ids. Without any: no order."""

    number: int = 0
    blocks: Sequence[int] = ()


NO_WIPES = Wipes()


class Wipeable(Protocol):
    """Pages that can be overwritten (``kvstore.pages.KVPages``)."""

    def wipe(self, blocks: Sequence[int]) -> None: ...


class Wiping:
    """The worker half's part. Owned by the engine's worker thread of one rank."""

    def __init__(self, pages: Wipeable) -> None:
        self._pages = pages
        self._done = 0

    def carry_out(self, wipes: Wipes) -> None:
        """Overwrite; returns when it is done."""
        if wipes.blocks:
            self._pages.wipe(wipes.blocks)
            self._done = wipes.number

    def take_done(self) -> int:
        """The number of the last order carried out since the last call; 0 where there was none."""
        done, self._done = self._done, 0
        return done
