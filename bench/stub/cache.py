"""The stub's prefix cache: blocks of words, found by the chain of all words before them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import xxhash


class PrefixCache:
    """Keeps ``capacity`` blocks, those least recently used go first. Scopes share nothing."""

    def __init__(self, capacity: int, block_words: int) -> None:
        self._capacity = capacity
        self._block_words = block_words
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def chain(self, scope: str, words: Sequence[str]) -> list[bytes]:
        """The keys of the whole blocks of ``words``, in order."""
        if not self._capacity:
            return []
        size = self._block_words
        key = xxhash.xxh3_128_digest(scope.encode())
        keys: list[bytes] = []
        for start in range(0, len(words) - size + 1, size):
            key = xxhash.xxh3_128_digest(key + " ".join(words[start : start + size]).encode())
            keys.append(key)
        return keys

    def find(self, chain: Sequence[bytes], words: int) -> int:
        """How many of a prompt's ``words`` are cached; as in vLLM never the last one."""
        found = 0
        for key in chain[: max(0, words - 1) // self._block_words]:
            if key not in self._blocks:
                break
            found += 1
        return found * self._block_words

    def keep(self, chain: Sequence[bytes]) -> None:
        """Put the blocks in, as just used; the first ones last to go."""
        for key in reversed(chain):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
