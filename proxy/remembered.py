"""What the proxy remembers of recent prompts: pieces of their texts, and each piece's tokens.

Requests find only what others with the same salt brought, so that how fast a prompt is rendered
tells nothing about anybody else's; of a request of which nothing may be kept, nothing is. A piece
is found by its whole text, compared character by character; prompts that share a beginning share
its pieces (``proxy.tokenizing``). All of it lies in memory and nowhere else. At the bounds the
pieces unused for longest go first: beyond a tenant's own bound the tenant's, whatever its salts,
beyond that of all the pieces of the tenant that was idle for longest.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence

from kvstore.salts import owner

_ENTRY_BYTES = 200
"""What a piece takes beside its text and tokens: the key, its places in two tables."""

_Key = tuple[str, int, str]
"""Salt, vocabulary, piece."""


class _Tenants(OrderedDict[str, OrderedDict[_Key, bytes]]):
    """Each tenant's pieces, by its tag; both the least recently used first."""


class Remembered:
    """Pieces of text to their packed tokens, by salt and vocabulary."""

    def __init__(self, most_bytes: int, tenant_bytes: int) -> None:
        self._most = most_bytes
        self._tenant_most = min(tenant_bytes, most_bytes)
        self._tenants = _Tenants()
        self._sizes: dict[str, int] = {}
        self.size = 0
        """Bytes taken, about."""

    def tokens(self, salt: str, vocabulary: int, pieces: Sequence[str]) -> list[bytes | None]:
        """The tokens of each of ``pieces``; None for one that nobody with ``salt`` has brought."""
        whose = owner(salt)
        book = None if whose is None else self._tenants.get(whose.tag)
        if whose is None or not whose.kept or book is None:
            return [None] * len(pieces)
        self._tenants.move_to_end(whose.tag)
        found: list[bytes | None] = []
        for piece in pieces:
            key = (salt, vocabulary, piece)
            tokens = book.get(key)
            if tokens is not None:
                book.move_to_end(key)
            found.append(tokens)
        return found

    def remember(
        self, salt: str, vocabulary: int, pieces: Sequence[str], tokens: Sequence[bytes]
    ) -> None:
        """A request with ``salt`` brought ``pieces``, which have ``tokens``."""
        whose = owner(salt)
        if not pieces or whose is None or not whose.kept:
            return
        tenant, salt = whose.tag, sys.intern(salt)  # one copy, for however many requests
        book = self._tenants.setdefault(tenant, OrderedDict())
        self._tenants.move_to_end(tenant)
        for piece, packed in zip(pieces, tokens, strict=True):
            if (salt, vocabulary, piece) not in book:
                book[salt, vocabulary, piece] = packed
                self._count(tenant, _bytes(piece, packed))
            book.move_to_end((salt, vocabulary, piece))
        while self._sizes.get(tenant, 0) > self._tenant_most:
            self._drop(tenant)
        while self.size > self._most:
            self._drop(next(iter(self._tenants)))

    def forget_tenant(self, tag: str) -> None:
        """Nothing of the tenant's may be found any more (``kvstore.salts.tag``)."""
        self._tenants.pop(tag, None)
        self.size -= self._sizes.pop(tag, 0)

    def forget(self, vocabulary: int) -> None:
        """Nobody's texts will be asked for in ``vocabulary`` any more."""
        for tenant, book in list(self._tenants.items()):
            for key in [key for key in book if key[1] == vocabulary]:
                self._count(tenant, -_bytes(key[2], book.pop(key)))
            self._close(tenant)

    def _drop(self, tenant: str) -> None:
        (_, _, piece), packed = self._tenants[tenant].popitem(last=False)
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
