"""Prompts under way: a worker is about to hold what it was given to compute. Pure.

The feed tells of blocks when they are there. Until then a second prompt that begins as one under
way does would be sent elsewhere, to be computed once more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from kvstore.blockhash import NAME_BYTES

MOST_COMPARED = 32
"""Prompts under way that a lookup compares, those that begin alike for longest first."""


class Promised:
    """Chains (joined block names) under way, by what they are known by. For one thread.

    A block's name says what all blocks before it are, so two prompts that have a name in common
    begin alike up to there. They are found by the names at doubling distances from the beginning.
    """

    def __init__(self) -> None:
        self._chains: dict[int, tuple[str, bytes]] = {}
        self._alike: defaultdict[bytes, dict[int, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._chains)

    def add(self, key: int, worker: str, chain: bytes) -> None:
        """``worker`` was given the prompt ``key``."""
        self._chains[key] = (worker, chain)
        for name in _marks(chain):
            self._alike[name][key] = None

    def remove(self, key: int) -> None:
        """What became of it is told by the feed, or nothing became of it."""
        if key not in self._chains:
            return
        for name in _marks(self._chains.pop(key)[1]):
            del self._alike[name][key]
            if not self._alike[name]:
                del self._alike[name]

    def lengths(self, chain: bytes) -> dict[str, int]:
        """How many of the chain's first blocks each worker is about to hold, where it is any.

        Of prompts that are too many to compare, those that have least in common are left out.
        """
        found: dict[str, int] = {}
        compared: set[int] = set()
        for name in reversed(list(_marks(chain))):
            for key in self._alike.get(name, ()):
                if key in compared:
                    continue
                if len(compared) >= MOST_COMPARED:
                    return found
                compared.add(key)
                worker, other = self._chains[key]
                found[worker] = max(_common(chain, other), found.get(worker, 0))
        return found


def _marks(chain: bytes) -> Iterator[bytes]:
    """The first name, the second, the fourth, the eighth and so on."""
    end = NAME_BYTES
    while end <= len(chain):
        yield chain[end - NAME_BYTES : end]
        end *= 2


def _common(one: bytes, other: bytes) -> int:
    """How many blocks both begin with."""
    least, most = 0, min(len(one), len(other)) // NAME_BYTES
    while least < most:
        middle = (least + most) // 2
        at = slice(middle * NAME_BYTES, (middle + 1) * NAME_BYTES)
        if one[at] == other[at]:
            least = middle + 1
        else:
            most = middle
    return least
