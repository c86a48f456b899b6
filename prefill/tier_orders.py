"""Which of a prompt's blocks the DRAM tier copies, and when.

Chunks are stored as they complete, and once, at its end, the window before the prompt's last whole
chunk. Loads bring chunks, and the window that the token after them attends to.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvstore.layout import KVGroup
from kvstore.tier import TierKey, TierOp
from kvstore.tier_shape import NULL_BLOCK, Part, TierShape

BlockTables = Sequence[Sequence[int]]


@dataclass
class Copied:
    """How far a prompt is in the tier: its chunks, and the window that ends there."""

    chunks: int = 0
    window: int = 0


class TierOrders:
    """Makes the orders of one engine; numbers them. ``tables``: a block table for each KV group."""

    def __init__(self, groups: tuple[KVGroup, ...], block_size: int, chunk_tokens: int) -> None:
        self._shape = TierShape(groups, block_size, chunk_tokens)
        self._block_size = block_size
        self._chunk = chunk_tokens
        self._numbers = itertools.count()

    def stores(
        self, key: TierKey, copied: Copied, computed: int, tables: BlockTables
    ) -> list[TierOp]:
        """What the tier lacks of the first ``computed`` tokens, and is now ordered to copy.

        The window only if all of it is still there.
        """
        chunk = self._chunk
        if chunk == 0:
            return []
        orders, complete = [], min(computed, len(key.tokens)) // chunk * chunk
        if complete > copied.chunks:
            orders.append(self._op(key, "chunks", copied.chunks, complete, tables))
            copied.chunks = complete
        last = len(key.tokens) // chunk * chunk
        if self._shape.windowed and copied.window < last == complete:
            copied.window = last
            window = self._op(key, "window", last - chunk, last, tables)
            if NULL_BLOCK not in window.block_ids:
                orders.append(window)
        return orders

    def loads(self, key: TierKey, local: int, end: int, tables: BlockTables) -> list[TierOp]:
        """Loads up to token ``end``; the first ``local`` tokens, here already, stay untouched."""
        orders = [self._load(key, "chunks", local // self._chunk * self._chunk, local, end, tables)]
        if self._shape.windowed:
            orders.append(self._load(key, "window", end - self._chunk, local, end, tables))
        return orders

    def _load(
        self, key: TierKey, part: Part, start: int, local: int, end: int, tables: BlockTables
    ) -> TierOp:
        op = self._op(key, part, start, end, tables)
        filled = [
            position < local // self._block_size or page == NULL_BLOCK
            for (_, position), page in zip(
                self._shape.places(part, start, end), op.block_ids, strict=True
            )
        ]
        return replace(op, skip_blocks=filled.index(False))

    def _op(self, key: TierKey, part: Part, start: int, end: int, tables: BlockTables) -> TierOp:
        return TierOp(
            op=next(self._numbers),
            request=key.request,
            tokens=key.tokens[:end],
            salt=key.salt,
            start=start,
            end=end,
            block_ids=[
                tables[group][position] for group, position in self._shape.places(part, start, end)
            ],
            part=part,
            names=b"".join(key.names[start // self._block_size : end // self._block_size]),
        )
