"""What the proxy remembers of recent prompts: pieces of their texts, and each piece's tokens.

A tenant finds only what it brought itself. A piece is found by its whole text, compared character
by character; prompts that share a beginning share its pieces (``proxy.tokenizing``). All of it lies
in memory and nowhere else. At the bounds the pieces unused for longest go first: beyond a tenant's
own bound the tenant's, beyond that of all the pieces of the tenant that was idle for longest.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence

_ENTRY_BYTES = 200
"""What a piece takes beside its text and tokens: the key, its places in two tables."""

_Key = tuple[int, str]


class _Tenants(OrderedDict[str, OrderedDict[_Key, bytes]]):
    """Each tenant's pieces; both the least recently used first."""


class Remembered:
    """Pieces of text to their packed tokens, by tenant and vocabulary."""

    def __init__(self, most_bytes: int, tenant_bytes: int) -> None:
        self._most = most_bytes
        self._tenant_most = min(tenant_bytes, most_bytes)
        self._tenants = _Tenants()
        self._sizes: dict[str, int] = {}
        self.size = 0
        """Bytes taken, about."""

    def tokens(self, tenant: str, vocabulary: int, pieces: Sequence[str]) -> list[bytes | None]:
        """The tokens of each of ``pieces``; None for one that ``tenant`` has not brought."""
        book = self._tenants.get(tenant)
        if book is None:
            return [None] * len(pieces)
        self._tenants.move_to_end(tenant)
        found: list[bytes | None] = []
        for piece in pieces:
            key = (vocabulary, piece)
            tokens = book.get(key)
            if tokens is not None:
                book.move_to_end(key)
            found.append(tokens)
        return found

    def remember(
        self, tenant: str, vocabulary: int, pieces: Sequence[str], tokens: Sequence[bytes]
    ) -> None:
        """``tenant`` brought ``pieces``, which have ``tokens``."""
        if not pieces:
            return
        book = self._tenants.setdefault(tenant, OrderedDict())
        self._tenants.move_to_end(tenant)
        for piece, packed in zip(pieces, tokens, strict=True):
            if (vocabulary, piece) not in book:
                book[vocabulary, piece] = packed
                self._count(tenant, _bytes(piece, packed))
            book.move_to_end((vocabulary, piece))
        while self._sizes.get(tenant, 0) > self._tenant_most:
            self._drop(tenant)
        while self.size > self._most:
            self._drop(next(iter(self._tenants)))

    def forget(self, vocabulary: int) -> None:
        """Nobody's texts will be asked for in ``vocabulary`` any more."""
        for tenant, book in list(self._tenants.items()):
            for key in [key for key in book if key[0] == vocabulary]:
                self._count(tenant, -_bytes(key[1], book.pop(key)))
            self._close(tenant)

    def _drop(self, tenant: str) -> None:
        (_, piece), packed = self._tenants[tenant].popitem(last=False)
        self._count(tenant, -_bytes(piece, packed))
        self._close(tenant)

    def _close(self, tenant: str) -> None:
        if not self._tenants[tenant]:
            del self._tenants[tenant], self._sizes[tenant]

    def _count(self, tenant: str, grown: int) -> None:
        self._sizes[tenant] = self._sizes.get(tenant, 0) + grown
        self.size += grown


def _bytes(piece: str, packed: bytes) -> int:
    return sys.getsizeof(piece) + sys.getsizeof(packed) + _ENTRY_BYTES
