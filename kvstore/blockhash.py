"""Names of KV blocks: the chain vLLM computes with ``--prefix-caching-hash-algo sha256_cbor``.

``hash(block i) = sha256(cbor((hash(block i-1), tokens of block i, extra keys)))`` with canonical
CBOR (RFC 8949, 4.2). The salt is an extra key of block 0 only, and so of every block after it.
Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``; a contract test compares both, block for block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cbor2
import numpy as np
import numpy.typing as npt

NAME_BYTES = 16
"""Indexes and feeds carry the first 16 of a hash's 32 bytes: a hint needs no more."""

Lora = tuple[str, str]
"""An adapter's name and path, as the engine knows it."""

Extra = tuple[tuple[str, ...], ...]
Tokens = Sequence[int] | npt.NDArray[np.uint32]


_ROOT = hashlib.sha256(cbor2.dumps("vllm-none-hash", canonical=True)).digest()
_TRIPLE = b"\x83" + cbor2.dumps(_ROOT)[: -len(_ROOT)]
"""What comes before the parent's hash in the CBOR of three things."""


def block_chain(
    tokens: Tokens,
    block_size: int,
    salt: str,
    adapter: Lora | None = None,
    known: Sequence[bytes] = (),
) -> list[bytes]:
    """Hashes (32 bytes each) of every full block of ``tokens``.

    The last, partly filled block has no name: only full blocks are ever found again. Tokens are of
    32 bits. ``known``: of the first blocks, from a prompt that begins alike, all of whose tokens in
    them are among ``tokens``.
    """
    lora: Extra = (("lora", *adapter),) if adapter else ()
    chain = list(known)
    if len(tokens) < block_size:  # which a worker has told, whatever it may be
        return chain
    parent, first = chain[-1] if chain else _ROOT, len(chain) * block_size
    numbers, ends = _cbor(tokens[first : len(tokens) // block_size * block_size], block_size)
    array = cbor2.dumps([0] * block_size)[:-block_size]
    extra = cbor2.dumps((lora if chain else (*lora, ("cache_salt", salt))) or None, canonical=True)
    later = cbor2.dumps(lora or None, canonical=True)
    start = 0
    for end in ends:
        whole = b"".join((_TRIPLE, parent, array, numbers[start:end], extra))
        parent = hashlib.sha256(whole).digest()
        chain.append(parent)
        start, extra = end, later
    return chain


def _cbor(tokens: Tokens, block_size: int) -> tuple[bytes, list[int]]:
    """The CBOR of ``tokens`` (whole blocks), one after the other, and where each block ends.

    By hand, since the library takes longer for a long prompt than all else does.
    """
    values = np.asarray(tokens, dtype=np.uint32)
    kind = np.searchsorted([24, 1 << 8, 1 << 16], values, side="right")
    sizes = np.array([0, 1, 2, 4])[kind]  # of the number, after its first byte
    after = np.cumsum(1 + sizes)
    starts = after - 1 - sizes
    out = np.empty(int(after[-1]) if len(after) else 0, dtype=np.uint8)
    out[starts] = np.where(kind == 0, values, 0x17 + kind)
    for place in range(4):  # big end first
        chosen = sizes > place
        shift = 8 * (sizes[chosen] - 1 - place)
        out[starts[chosen] + 1 + place] = values[chosen] >> shift & 0xFF
    return out.tobytes(), after[block_size - 1 :: block_size].tolist()


def block_names(chain: Sequence[bytes]) -> list[bytes]:
    """What indexes and feeds know a block by: the first ``NAME_BYTES`` of its hash."""
    return [block[:NAME_BYTES] for block in chain]


def split_names(joined: bytes) -> tuple[bytes, ...]:
    """The names that ``joined`` is made of."""
    starts = range(0, len(joined), NAME_BYTES)
    return tuple(joined[start : start + NAME_BYTES] for start in starts)


def are_names(joined: bytes) -> bool:
    """Whether ``joined`` may be names one after the other."""
    return len(joined) % NAME_BYTES == 0


def prompt_digest(tokens: Sequence[int]) -> bytes:
    """SHA-256 over a prompt's token ids (as unsigned 32-bit little endian), bound into MACs."""
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).digest()
