"""Sets of holders, each kept once and known by a number.

Blocks come in runs that the same workers hold, so many blocks share few sets. A holder is a bit
and a set an integer of them; blocks carry the set's number, and 0 is the empty set's. A holder that
is gone is struck out of every set at once, wherever its number stands.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint32]

EMPTY = 0


class HolderSets:
    """At most ``limit`` sets; a set beyond it is the empty one. For one thread.

    How many blocks carry a number is counted: ``changed`` gives each another one, ``forget`` says
    that a block is gone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._masks: list[int] = [0]
        self._numbers: dict[int, int] = {0: EMPTY}
        self._uses: npt.NDArray[np.int64] = np.zeros(64, dtype=np.int64)
        self._empty: npt.NDArray[np.bool_] = np.zeros(64, dtype=np.bool_)
        self._free: list[int] = []
        self.refused = 0

    def __len__(self) -> int:
        return len(self._masks) - len(self._free)

    def mask(self, number: int) -> int:
        """The set's bits."""
        return self._masks[number]

    @property
    def struck(self) -> npt.NDArray[np.bool_]:
        """By number, sets that have become empty where blocks still carry them."""
        return self._empty

    def changed(self, numbers: Numbers, bit: int, held: bool) -> tuple[Numbers, int]:
        """The sets of ``numbers`` with ``bit`` in or out, counted as moved; how many differ."""
        kinds, places, counts = _distinct(numbers)
        after = np.empty(len(kinds), dtype=np.uint32)
        differ = 0
        for at, (number, count) in enumerate(zip(kinds.tolist(), counts.tolist(), strict=True)):
            mask = self._masks[number]
            wanted = mask | bit if held else mask & ~bit
            after[at] = number
            if wanted != mask:
                differ += count
                after[at] = self._move(number, wanted, count)
        return after[places], differ

    def forget(self, numbers: Numbers) -> None:
        """Blocks that carried these are gone."""
        kinds, _, counts = _distinct(numbers)
        for number, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            self._use(number, -count)

    def strike(self, bits: int) -> None:
        """These holders hold nothing any more."""
        for number, mask in enumerate(self._masks):
            if not mask & bits:
                continue
            if self._numbers.get(mask) == number:
                del self._numbers[mask]
            left = mask & ~bits
            self._masks[number] = left
            self._empty[number] = left == 0
            self._numbers.setdefault(left, number)

    def _move(self, number: int, wanted: int, count: int) -> int:
        self._use(number, -count)
        new = self._numbers.get(wanted)
        if new is None:
            new = self._made(wanted)
        self._use(new, count)
        return new

    def _made(self, mask: int) -> int:
        if self._free:
            number = self._free.pop()
        elif len(self._masks) < self._limit:
            number = len(self._masks)
            self._masks.append(0)
            if number >= len(self._uses):
                self._uses = np.concatenate([self._uses, np.zeros_like(self._uses)])
                self._empty = np.concatenate([self._empty, np.zeros_like(self._empty)])
        else:
            self.refused += 1
            return EMPTY
        self._masks[number] = mask
        self._numbers[mask] = number
        return number

    def _use(self, number: int, count: int) -> None:
        if number == EMPTY:
            return
        self._uses[number] += count
        if self._uses[number] == 0:
            mask = self._masks[number]
            if self._numbers.get(mask) == number:
                del self._numbers[mask]
            self._masks[number] = 0
            self._empty[number] = False
            self._free.append(number)


def _distinct(
    numbers: Numbers,
) -> tuple[Numbers, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The distinct numbers, which of them each is, and how often each occurs."""
    if len(numbers) and (numbers == numbers[0]).all():
        return numbers[:1], np.zeros(len(numbers), dtype=np.intp), np.array([len(numbers)])
    return np.unique(numbers, return_inverse=True, return_counts=True)
