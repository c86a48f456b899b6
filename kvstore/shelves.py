"""Whose of what is kept goes first: every tenant has a shelf of its own. Pure; its owner locks it.

A shelf gives up its oldest things first. Of each tier's capacity a tenant's **floor** is not taken
from it by others as long as it uses that; what it has above its floor is borrowed, and who has
borrowed most gives first, so a tenant that floods a tier evicts its own. Above its **limit** a
tenant evicts its own though there were room.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SPARE = 64
"""Entries that the heap of borrowers may have beside twice as many as there are tenants."""

_MORE = 4
"""Who borrows more claims a sixteenth too much, so that it need not claim again with each thing."""


class Shelves(Generic[K]):
    """Things by key, each with a size, on the shelves of tenants; ``capacity`` has the same unit.

    A tenant of whom no share was told has floor 0 and limit 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._shelves: dict[str, OrderedDict[K, int]] = {}
        self._owners: dict[K, str] = {}
        self._kept: dict[str, int] = {}
        self._shares: dict[str, tuple[float, float]] = {}
        self._borrowers: list[tuple[int, str]] = []
        self._claims: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, key: K) -> bool:
        return key in self._owners

    @property
    def kept(self) -> dict[str, int]:
        """What is kept of each tenant of whom anything is."""
        return dict(self._kept)

    def share(self, tag: str, floor: float, limit: float) -> None:
        """From now on these parts of the capacity are the tenant's floor and limit."""
        self._shares[tag] = floor, limit
        self._borrows(tag)

    def put(self, tag: str, key: K, size: int) -> None:
        """``key`` is the newest on the shelf of ``tag``, wherever it was before."""
        self.remove(key)
        self._shelves.setdefault(tag, OrderedDict())[key] = size
        self._owners[key] = tag
        self._kept[tag] = self._kept.get(tag, 0) + size
        self._borrows(tag)

    def touch(self, key: K) -> None:
        """``key``, if it is here, is the newest on its shelf."""
        if (tag := self._owners.get(key)) is not None:
            self._shelves[tag].move_to_end(key)

    def remove(self, key: K) -> bool:
        """``key`` is kept no more; whether it was."""
        tag = self._owners.pop(key, None)
        if tag is None:
            return False
        self._kept[tag] -= self._shelves[tag].pop(key)
        if not self._shelves[tag]:
            del self._shelves[tag], self._kept[tag]
        return True

    def of(self, tag: str) -> Iterator[K]:
        """What is on the shelf of ``tag``, oldest first; not to be changed meanwhile."""
        return iter(self._shelves.get(tag, ()))

    def size(self, key: K) -> int:
        """That of what is kept under ``key``. Raises KeyError where nothing is."""
        return self._shelves[self._owners[key]][key]

    def kept_of(self, tag: str) -> int:
        """What is kept of that tenant."""
        return self._kept.get(tag, 0)

    def limit(self, tag: str) -> int:
        """More than that ``tag`` may not have."""
        _, limit = self._shares.get(tag, (0.0, 1.0))
        return int(limit * self.capacity)

    def excess(self, tag: str) -> int:
        """By how much ``tag`` is above its limit."""
        return max(0, self._kept.get(tag, 0) - self.limit(tag))

    def borrower(self, but: Collection[str] = ()) -> str | None:
        """Who has most above its floor, ``but`` for these; None where nobody has anything above it.

        The next thing to go for anybody's sake is the oldest on that shelf.
        """
        passed, found = [], None
        while self._borrowers and found is None:
            claimed, tag = self._borrowers[0]
            borrowed = self.borrowed(tag)
            if self._claims.get(tag) != -claimed:  # It has claimed more since.
                heapq.heappop(self._borrowers)
            elif -claimed != borrowed:
                self._claim_less(tag, borrowed)
            elif tag in but:
                passed.append(heapq.heappop(self._borrowers))
            else:
                found = tag
        for entry in passed:
            heapq.heappush(self._borrowers, entry)
        return found

    def borrowed(self, tag: str, more: int = 0) -> int:
        """What ``tag`` has above its floor, if it had that much ``more``."""
        floor, _ = self._shares.get(tag, (0.0, 1.0))
        return max(0, self._kept.get(tag, 0) + more - int(floor * self.capacity))

    def _borrows(self, tag: str) -> None:
        """Each tenant has one entry that counts, and claims at least what it has borrowed."""
        borrowed = self.borrowed(tag)
        if borrowed <= self._claims.get(tag, 0):
            return
        claimed = borrowed + (borrowed >> _MORE)
        self._claims[tag] = claimed
        heapq.heappush(self._borrowers, (-claimed, tag))
        if len(self._borrowers) > 2 * len(self._shelves) + _SPARE:
            self._claims = {one: now for one in self._shelves if (now := self.borrowed(one)) > 0}
            self._borrowers = [(-now, one) for one, now in self._claims.items()]
            heapq.heapify(self._borrowers)

    def _claim_less(self, tag: str, borrowed: int) -> None:
        """``tag``, whose entry is the first one, has given some back."""
        if borrowed > 0:
            self._claims[tag] = borrowed
            heapq.heapreplace(self._borrowers, (-borrowed, tag))
        else:
            del self._claims[tag]
            heapq.heappop(self._borrowers)
