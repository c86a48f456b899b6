"""Names of KV blocks: the chain vLLM computes with ``--prefix-caching-hash-algo sha256_cbor``.

``hash(block i) = sha256(cbor((hash(block i-1), tokens of block i, extra keys)))`` with canonical
CBOR (RFC 8949, 4.2). The salt is an extra key of block 0 only, and so of every block after it.
Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``; a contract test compares both, block for block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cbor2

NAME_BYTES = 16
"""Indexes and feeds carry the first 16 of a hash's 32 bytes: a hint needs no more."""

Extra = tuple[tuple[str, ...], ...]


def _digest(value: object) -> bytes:
    return hashlib.sha256(cbor2.dumps(value, canonical=True)).digest()


_ROOT = _digest("vllm-none-hash")


def block_chain(
    tokens: Sequence[int],
    block_size: int,
    salt: str,
    adapter: tuple[str, str] | None = None,
) -> list[bytes]:
    """Hashes (32 bytes each) of every full block of ``tokens``.

    ``adapter`` is a LoRA adapter's (name, path) as the engine knows it. The last, partly filled
    block has no name: only full blocks are ever found again.
    """
    lora: Extra = (("lora", *adapter),) if adapter else ()
    parent, chain = _ROOT, []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        extra = (*lora, ("cache_salt", salt)) if start == 0 else lora
        parent = _digest((parent, tuple(tokens[start : start + block_size]), extra or None))
        chain.append(parent)
    return chain


def block_names(chain: Sequence[bytes]) -> list[bytes]:
    """What indexes and feeds know a block by: the first ``NAME_BYTES`` of its hash."""
    return [block[:NAME_BYTES] for block in chain]


def are_names(joined: bytes) -> bool:
    """Whether ``joined`` may be names one after the other."""
    return len(joined) % NAME_BYTES == 0


def prompt_digest(tokens: Sequence[int]) -> bytes:
    """SHA-256 over a prompt's token ids (as unsigned 32-bit little endian), bound into MACs."""
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).digest()
