"""The seal behind every chunk in shared memory: whose KV it is, and that it is whole.

LMCache's server publishes a chunk that a worker had reserved and never filled when that worker
dies or signs off, and it reuses memory whose lock has run out. So what the server says about a
chunk is a hint. A chunk is::

    payload (KV, opaque) | magic 8 | identity 32 | digest 16 | zeros 8

written in that order, and nothing is used whose seal does not name exactly this prompt, tenant,
layout and rank, or whose payload does not match.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

Bytes = npt.NDArray[np.uint8]

SEAL_BYTES = 64
_MAGIC = b"kvferry1"
_BODY = len(_MAGIC) + 32


@dataclass(frozen=True)
class Scope:
    """What gives a chunk's bytes their meaning besides its tokens and its tenant."""

    namespace: str
    fingerprint: bytes
    rank: int
    ranks: int

    def identities(
        self, tokens: Sequence[int], salt: str, start: int, end: int, chunk: int
    ) -> list[bytes]:
        """32 bytes for each chunk of ``[start, end)``, binding all tokens up to its end."""
        running = hashlib.blake2b(digest_size=32)
        rank = f"{self.rank}/{self.ranks}/{chunk}".encode()
        for field in (self.namespace.encode(), self.fingerprint, rank, salt.encode()):
            running.update(len(field).to_bytes(8, "big") + field)
        flat = np.asarray(tokens[:end], dtype="<u4")
        running.update(flat[:start].tobytes())
        identities = []
        for at in range(start, end, chunk):
            running.update(flat[at : at + chunk].tobytes())
            identities.append(running.copy().digest())
        return identities


def write_seal(slot: Bytes, identity: bytes) -> None:
    """Seal a slot whose payload is complete."""
    payload, seal = slot[:-SEAL_BYTES], slot[-SEAL_BYTES:]
    text = _MAGIC + identity + _digest(payload)
    seal[:] = np.frombuffer(text.ljust(SEAL_BYTES, b"\0"), dtype=np.uint8)


def names(slot: Bytes, identity: bytes) -> bool:
    """Whether the slot's seal is this identity's."""
    return slot[-SEAL_BYTES:][:_BODY].tobytes() == _MAGIC + identity


def is_whole(slot: Bytes, identity: bytes) -> bool:
    """Whether the slot is sealed for ``identity`` and its payload matches, at this moment.

    True after a copy was taken means that the copy is right: memory the server has given to
    somebody else does not turn back.
    """
    digest = slot[-SEAL_BYTES:][_BODY : _BODY + 16].tobytes()
    return names(slot, identity) and _digest(slot[:-SEAL_BYTES]) == digest


def is_blank(slot: Bytes) -> bool:
    """Whether the slot bears no seal: it was never filled, or has been overwritten."""
    return not slot[-SEAL_BYTES:].any()


def _digest(payload: Bytes) -> bytes:
    return xxhash.xxh3_128_digest(payload.data)
