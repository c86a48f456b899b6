"""Prompts under way: a worker is about to hold what it was given to compute. Pure.

The feed tells of blocks when they are there. Until then a second prompt that begins as one under
way does would be sent elsewhere, to be computed once more.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

from kvstore.blockhash import NAME_BYTES

MOST_COMPARED = 32
"""Prompts under way that a lookup compares at each distance; of more, the latest."""

Life = tuple[str, str]
"""A worker and its generation: a new one holds nothing of what the old one computed."""


class Promised:
    """Chains (joined block names) under way, by what they are known by. For one thread.

    A block's name says what all blocks before it are, so two prompts that have a name in common
    begin alike up to there. They are found by the names at doubling distances from the beginning.
    """

    def __init__(self) -> None:
        self._chains: dict[int, tuple[Life, bytes]] = {}
        self._alike: defaultdict[bytes, dict[int, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._chains)

    def add(self, key: int, worker: Life, chain: bytes) -> None:
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

    def lengths(self, chain: bytes) -> dict[Life, int]:
        """How many of the chain's first blocks each worker is about to hold, where it is any."""
        found: dict[Life, int] = {}
        for length, name in reversed(list(enumerate(_marks(chain)))):
            nearer: dict[Life, int] = {}
            for key in itertools.islice(reversed(self._alike.get(name, {})), MOST_COMPARED):
                worker, other = self._chains[key]
                if worker in found:
                    continue  # what it has in common is more than anything from here on
                known = nearer.setdefault(worker, 1 << length)
                # A name says what is before it: most have no more in common, and one look tells.
                if _name(chain, known) == _name(other, known) != b"":
                    nearer[worker] = _common(chain, other)
            found |= nearer
        return found


def _marks(chain: bytes) -> Iterator[bytes]:
    """The first name, the second, the fourth, the eighth and so on."""
    end = NAME_BYTES
    while end <= len(chain):
        yield chain[end - NAME_BYTES : end]
        end *= 2


def _name(chain: bytes, at: int) -> bytes:
    return chain[at * NAME_BYTES : (at + 1) * NAME_BYTES]


def _common(one: bytes, other: bytes) -> int:
    """How many blocks both begin with."""
    least, most = 0, min(len(one), len(other)) // NAME_BYTES
    while least < most:
        middle = (least + most) // 2
        if _name(one, middle) == _name(other, middle):
            least = middle + 1
        else:
            most = middle
    return least
