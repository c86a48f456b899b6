"""Block names of recent prompts, so that one that begins like another costs only its rest. Pure.

A run of blocks is found by salt and adapter, by all of its tokens and by what comes before it:
prompts that part later share the runs before, whoever is not of the same salt shares none. At the
bound the runs unused for longest go first; they are then hashed anew.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from kvstore.blockhash import Lora, block_chain, block_names

RUN_TOKENS = 1024
"""A run takes about four times as many bytes, and 65 for each of its blocks."""
MOST_RUNS = 4096

_TOKEN_BYTES = 4
_Key = tuple[str, Lora | None, bytes, int, bytes]


class Chains:
    """For one thread."""

    def __init__(self, most: int = MOST_RUNS) -> None:
        self._most = most
        self._runs: OrderedDict[_Key, list[bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def names(
        self, tokens: Sequence[int], block_size: int, salt: str, adapter: Lora | None = None
    ) -> list[bytes]:
        """Of every full block of ``tokens``, each of 32 bits."""
        blocks = max(1, RUN_TOKENS // block_size)
        salt = sys.intern(salt)  # one copy, for however many requests
        values = np.asarray(tokens, dtype=np.uint32)
        packed = values.tobytes()
        size = blocks * block_size * _TOKEN_BYTES
        runs = [packed[at : at + size] for at in range(0, len(packed) - size + 1, size)]
        chain: list[bytes] = []
        known = 0
        for run in runs:
            found = self._runs.get(key := _key(chain, salt, adapter, block_size, run))
            if found is None:
                break
            self._runs.move_to_end(key)
            chain += found
            known += 1
        chain = block_chain(values, block_size, salt, adapter, known=chain)
        for at in range(known, len(runs)):
            before = chain[max(0, at * blocks - 1) : at * blocks]
            made = chain[at * blocks : (at + 1) * blocks]
            self._runs[_key(before, salt, adapter, block_size, runs[at])] = made
        while len(self._runs) > self._most:
            self._runs.popitem(last=False)
        return block_names(chain)

    def forget_tenant(self, tag: str) -> None:
        """Nothing of the tenant's may be found any more (``kvstore.salts.tag``)."""
        for key in [key for key in self._runs if key[0].startswith(f"{tag}-")]:
            del self._runs[key]


def _key(
    before: Sequence[bytes], salt: str, adapter: Lora | None, block_size: int, run: bytes
) -> _Key:
    # What comes before decides all names after it.
    return salt, adapter, before[-1] if before else b"", block_size, run
