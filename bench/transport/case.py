"""What is moved: how many blocks, from which pages to which, in how many transfers at once."""

from __future__ import annotations

import random
from typing import Literal

import msgspec

BLOCK_BYTES = 64 << 10
"""A block is one page of this size."""

Side = Literal["sender", "receiver"]
SIDES: tuple[Side, Side] = ("sender", "receiver")

Order = Literal["contiguous", "random", "gathered"]
"""Pages as they follow each other; or in no order on either side; or from random ones to contiguous
memory, which is what a gather alone does."""

_REPEATED_BYTES = 256 << 20
_MOST_REPEATS = 100
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


class Case(msgspec.Struct, frozen=True):
    """``blocks`` in all, shared out evenly over ``transfers`` that are under way at once."""

    blocks: int
    order: Order = "contiguous"
    transfers: int = 1

    @property
    def size(self) -> int:
        """Bytes of all its blocks."""
        return self.blocks * BLOCK_BYTES

    @property
    def label(self) -> str:
        """For people: ``64 MiB random``, ``62.5 MiB random, 100 transfers``."""
        at_once = f", {self.transfers} transfers" if self.transfers > 1 else ""
        return f"{told_bytes(self.size)} {self.order}{at_once}"

    @property
    def repeats(self) -> int:
        """How often it is run in one round: small ones more often, for they vary more."""
        return min(_MOST_REPEATS, max(1, _REPEATED_BYTES // self.size))

    def pages(self, side: Side, held: int) -> list[int]:
        """The block ids on one side, position by position, of the ``held`` that it has.

        Always the same ones. Raises ValueError where ``held`` are not enough.
        """
        if self.blocks > held:
            raise ValueError(f"{self.blocks} blocks of {held}")
        if self.order == "contiguous" or (self.order == "gathered" and side == "receiver"):
            return list(range(self.blocks))
        return random.Random(f"{side}/{self.blocks}").sample(range(held), self.blocks)

    def share(self, transfer: int) -> slice:
        """The positions that belong to one of its transfers."""
        each = self.blocks // self.transfers
        return slice(transfer * each, (transfer + 1) * each)


def told_bytes(count: int) -> str:
    """``64 KiB``, ``62.5 MiB``."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count} B"


def bytes_of(text: str) -> int:
    """The number of bytes that ``64KiB``, ``1 GiB`` or ``65536`` names. Raises ValueError."""
    for unit, name in (*_UNITS, (1, "B")):
        if text.strip().endswith(name):
            return round(float(text.strip().removesuffix(name)) * unit)
    return int(text)
