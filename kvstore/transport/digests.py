"""What tells a block that arrived from one that was sent: 16 bytes for each.

``xxh3-128`` finds every accident and costs a thirtieth of a nanosecond per byte; who could forge
it is kept out by CURVE, or by the folder the socket lies in. Where neither stands between, on the
plain bulk connection, :class:`Keyed` is used instead. ``none`` is for measuring what the other
costs: a block is then whatever arrived.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import xxhash
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvstore.messages import DigestName
from kvstore.pages import Bytes

BlockName = tuple[bytes, int, int]
"""(transfer, KV group, position)."""

_TRANSFERS = 256
_SEED = (1 << 64) - 1


Pieces = Iterable[Bytes]
"""A block, in wire order."""


class Digest(Protocol):
    """Blocks at ``first`` and the positions after it to 16 bytes each."""

    def expect(self, transfer: bytes) -> None:
        """Blocks of this transfer come soon: do now what can be done before."""
        ...

    def of(self, first: BlockName, blocks: Iterable[Pieces]) -> tuple[bytes, ...]: ...


class Xxh3:
    """XXH3 with 128 bits (xxhash.com), over all pieces as one.

    Seeded with the block's place: what is right in one KV group or position is wrong in another.
    """

    def expect(self, transfer: bytes) -> None:
        """See Digest."""

    def of(self, first: BlockName, blocks: Iterable[Pieces]) -> tuple[bytes, ...]:
        """See Digest."""
        _, group, position = first
        found = []
        for place, pieces in enumerate(blocks, (group << 32) + position):
            state = xxhash.xxh3_128(seed=place & _SEED)
            for piece in pieces:
                state.update(piece.data)
            found.append(state.digest())
        return tuple(found)


class NoDigest:
    """The same for every block."""

    def expect(self, transfer: bytes) -> None:
        """See Digest."""

    def of(self, first: BlockName, blocks: Iterable[Pieces]) -> tuple[bytes, ...]:
        """See Digest."""
        del first
        return tuple(bytes(16) for _ in blocks)


class Keyed:
    """GMAC (NIST SP 800-38D), which only workers of this cluster can make: a MAC, not a checksum.

    The key is the transfer's own, in this layout (every slice of KV heads has another); the block's
    place in it is the nonce. Neither may ever be used twice, and is not: a transfer's number is
    random, and a block of it is sent once.
    """

    def __init__(self, key: bytes, fingerprint: bytes) -> None:
        @lru_cache(_TRANSFERS)
        def of_transfer(transfer: bytes) -> AESGCM:
            return AESGCM(hmac.digest(key, b"kvferry bulk 1" + fingerprint + transfer, "sha256"))

        self._of_transfer = of_transfer

    def expect(self, transfer: bytes) -> None:
        """See Digest. To make a key takes as long as to use it on a small block."""
        self._of_transfer(transfer)

    def of(self, first: BlockName, blocks: Iterable[Pieces]) -> tuple[bytes, ...]:
        """See Digest. For blocks in one piece: what is sent in frames is."""
        transfer, group, position = first
        encrypt, in_group = self._of_transfer(transfer).encrypt, group.to_bytes(4, "little")
        return tuple(
            encrypt(in_group + at.to_bytes(8, "little"), b"", piece.data)
            for at, (piece,) in enumerate(blocks, position)
        )


def digest_of(name: DigestName) -> Digest:
    """The digest of that name."""
    return Xxh3() if name == "xxh3-128" else NoDigest()


def keyed_of(name: DigestName, key: bytes, fingerprint: bytes) -> Digest:
    """What blocks get on a connection where anybody may write; with "none", nothing either."""
    return NoDigest() if name == "none" else Keyed(key, fingerprint)
