"""A map from 64-bit block keys to 32-bit values, in two flat arrays.

A key is part of a hash and so its own hash value: its low half names one bucket of eight slots, its
high half another, and it lies in the one that was emptier (two choices: Azar et al. 1994). The
table grows by linear hashing (Litwin 1980): one bucket after the other is split into itself and a
new one behind all others, in place, so that nothing ever waits for a table to be rebuilt. Room is
reserved for ``limit`` keys and becomes memory as buckets come to be: 12 bytes a slot, of which
a little more than half are filled.
"""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Values = npt.NDArray[np.uint32]
Slots = npt.NDArray[np.int64]

ABSENT: Final = -1

_WIDTH = 8
_FILL = 0.55  # Above it more and more keys find both buckets full.
_FIRST_LEVEL = 6
_SPLIT_AT_ONCE = 64
_LOW_HALF = np.uint64(0xFFFF_FFFF)
_HALF = np.uint64(32)
_NORESERVE = 0x4000  # Linux's MAP_NORESERVE, which mmap does not name before Python 3.13.
_COUNTS = np.array([bits.bit_count() for bits in range(256)], dtype=np.uint8)
"""By which slots of a bucket are free, the first one being the highest bit: how many are."""
_FIRSTS = np.array([8 - bits.bit_length() for bits in range(256)], dtype=np.int64)
"""And which is the first."""


class BlockTable:
    """Keys and values of 1 and more. The keys of one call differ from each other. For one thread.

    ``limit`` keys at most: beyond it keys are not taken in.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        most = max(int(limit / _FILL / _WIDTH) + _SPLIT_AT_ONCE, 2 << _FIRST_LEVEL)
        self._most = most
        self._slots: Keys = np.frombuffer(_reserved(most * _WIDTH * 8), dtype=np.uint64)
        self._keys = self._slots.reshape(most, _WIDTH)
        self._values: Values = np.frombuffer(_reserved(most * _WIDTH * 4), dtype=np.uint32)
        self._level = _FIRST_LEVEL
        self._buckets = 1 << _FIRST_LEVEL
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory in use."""
        return self._buckets * _WIDTH * (self._keys.itemsize + self._values.itemsize)

    @property
    def buckets(self) -> int:
        """How many there are by now."""
        return self._buckets

    def find(self, keys: Keys) -> Slots:
        """Where each key lies; ABSENT for one that is not there."""
        places = self._places(keys)
        there = self._keys.take(places, axis=0).reshape(2, -1, _WIDTH) == keys[:, None]
        place, slot = np.divmod(np.flatnonzero(there), _WIDTH)
        slots = np.full(len(keys), ABSENT, dtype=np.int64)
        slots[place % max(1, len(keys))] = places[place] * _WIDTH + slot
        return slots

    def values(self, slots: Slots) -> Values:
        """What lies there; 0 where a slot is ABSENT."""
        found = self._values[slots]
        found[slots < 0] = 0
        return found

    def replace(self, slots: Slots, values: Values) -> None:
        """New values for keys that are there."""
        self._values[slots] = values

    def remove(self, slots: Slots) -> None:
        """Forget the keys that lie there."""
        self._slots[slots] = 0
        self._values[slots] = 0
        self._count -= len(slots)

    def insert(self, keys: Keys, values: Values) -> Values:
        """Take in keys that are not there; the values of those that found no room."""
        room = self._limit - self._count
        refused = [values[room:]]
        keys, values = keys[:room], values[:room]
        self._grow(self._count + len(keys))
        while len(keys):
            slots = self._free_slots(keys)
            full = slots == ABSENT
            if full.any():
                refused += self._squeeze_in(keys[full], values[full])
                keys, values = keys[~full], values[~full]
                continue
            self._slots[slots] = keys
            placed = self._slots[slots] == keys  # Of several for one slot the last has got it.
            self._values[slots[placed]] = values[placed]
            self._count += int(placed.sum())
            keys, values = keys[~placed], values[~placed]
        return np.concatenate(refused)

    def sweep(self, start: int, count: int, gone: npt.NDArray[np.bool_]) -> Values:
        """Forget keys whose values are ``gone``, in ``count`` buckets from ``start`` on.

        Returns the values.
        """
        part = self._values[start * _WIDTH : min(start + count, self._buckets) * _WIDTH]
        slots = np.flatnonzero(gone[part]) + start * _WIDTH
        values = self._values[slots]
        self.remove(slots)
        return values

    def _places(self, keys: Keys) -> Slots:
        """The two buckets of each key: one of all, then the other of all."""
        hashed = np.concatenate([keys & _LOW_HALF, keys >> _HALF]).view(np.int64)
        hashed &= (2 << self._level) - 1
        hashed[hashed >= self._buckets] -= 1 << self._level
        return hashed

    def _free_slots(self, keys: Keys) -> Slots:
        """A free slot in the emptier bucket of each key; ABSENT where both are full."""
        places, count = self._places(keys), len(keys)
        free = np.packbits(self._keys.take(places, axis=0) == 0)
        rather = _COUNTS[free[count:]] > _COUNTS[free[:count]]
        chosen = np.where(rather, free[count:], free[:count])
        slots = np.where(rather, places[count:], places[:count]) * _WIDTH + _FIRSTS[chosen]
        slots[chosen == 0] = ABSENT
        return slots

    def _put(self, slots: Slots, keys: Keys, values: Values) -> None:
        self._slots[slots] = keys
        self._values[slots] = values
        self._count += len(slots)

    def _squeeze_in(self, keys: Keys, values: Values) -> list[Values]:
        """The values of ``keys`` that found no room though another went to its other bucket."""
        refused = []
        for at in range(len(keys)):
            key, value = keys[at : at + 1], values[at : at + 1]
            slots = np.add.outer(self._places(key) * _WIDTH, np.arange(_WIDTH)).reshape(-1)
            moved = self._free_slots(self._slots[slots])
            able = np.flatnonzero(moved != ABSENT)[:1]
            if len(able):
                leaving = slots[able]
                self._put(moved[able], self._slots[leaving], self._values[leaving])
                self.remove(leaving)
                self._put(leaving, key, value)
            else:
                refused.append(value)
        return refused

    def _grow(self, count: int) -> None:
        """Split buckets until ``count`` keys leave enough slots free."""
        while count > self._buckets * _WIDTH * _FILL and self._buckets < self._most:
            first = self._buckets - (1 << self._level)
            wanted = max(_SPLIT_AT_ONCE, int(count / _WIDTH / _FILL) - self._buckets)
            left = min((1 << self._level) - first, self._most - self._buckets)
            self._split(first, min(wanted, left))

    def _split(self, first: int, count: int) -> None:
        """Split ``count`` buckets from ``first`` on, where some keys now belong behind all."""
        old, new = slice(first, first + count), slice(self._buckets, self._buckets + count)
        self._buckets += count
        keys = self._keys[old]
        here = np.arange(first, first + count)[:, None]
        places = self._places(keys.reshape(-1)).reshape(2, -1, _WIDTH)
        goes = (places != here).all(axis=0) & (keys != 0)
        values = self._values.reshape(-1, _WIDTH)
        for array in (self._keys, values):
            array[new] = np.where(goes, array[old], 0)
            array[old][goes] = 0
        if self._buckets == 2 << self._level:
            self._level += 1


def _reserved(size: int) -> mmap.mmap:
    """Zeros that become memory when they are written, of which the host need not have as much."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
