"""A bounded memory of what has been used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class UsedOnce:
    """Lets each key through once; remembers the latest ``limit`` keys."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._keys: OrderedDict[Hashable, None] = OrderedDict()

    def first_use(self, key: Hashable) -> bool:
        """True the first time ``key`` is seen."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)
        return True
