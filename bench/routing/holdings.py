"""What a stub worker holds of prompts, as an engine would tell of it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from kvstore.blockhash import block_chain, block_names

_Chained = tuple[Sequence[int], list[bytes]]


_OPENING = 64
"""Tokens by which prompts are told apart that go on differently."""
_MOST_CHAINS = 64


class Chains:
    """The names of prompts' blocks. One that begins as another one lately costs only its rest."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._last: OrderedDict[tuple[str, tuple[int, ...]], _Chained] = OrderedDict()

    def names(self, tokens: Sequence[int], salt: str) -> list[bytes]:
        """Of every whole block of ``tokens``."""
        place = salt, tuple(tokens[:_OPENING])
        before, chain = self._last.get(place, ((), []))
        known = chain[: alike(tokens, before) // self._block_size]
        chain = block_chain(tokens, self._block_size, salt, known=known)
        self._last[place] = (tokens, chain)
        self._last.move_to_end(place)
        if len(self._last) > _MOST_CHAINS:
            self._last.popitem(last=False)
        return block_names(chain)


class Holding:
    """Block names that one worker holds, at most ``capacity``: those used longest ago go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._names: OrderedDict[bytes, None] = OrderedDict()

    def held(self, names: Sequence[bytes]) -> int:
        """How many of a prompt's first blocks are there."""
        return next((at for at, name in enumerate(names) if name not in self._names), len(names))

    def keep(self, names: Sequence[bytes]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """A prompt was computed or received: names that are new, and those that had to go."""
        added = tuple(name for name in names if name not in self._names)
        for name in reversed(names):  # a prompt's first blocks are the last to go
            self._names[name] = None
            self._names.move_to_end(name)
        over = max(0, len(self._names) - self._capacity)
        gone = tuple(self._names.popitem(last=False)[0] for _ in range(over))
        fresh = set(added)
        went = fresh.intersection(gone)
        return tuple(n for n in added if n not in went), tuple(n for n in gone if n not in fresh)


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
