"""A chunk's seal: only exactly this prompt, tenant, layout and rank, and only whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore.tier_seal import SEAL_BYTES, Scope, is_whole, names, write_seal

SCOPE = Scope("model", b"layout", rank=0, ranks=1)
TOKENS = list(range(32))


def slot() -> np.ndarray:
    return np.arange(256 + SEAL_BYTES, dtype=np.uint32).astype(np.uint8)


def identity(scope: Scope = SCOPE, tokens: list[int] = TOKENS, salt: str = "a") -> bytes:
    return scope.identities(tokens, salt, 8, 16, 8)[0]


def test_a_sealed_slot_is_whole() -> None:
    chunk = slot()
    assert not names(chunk, identity())
    write_seal(chunk, identity())
    assert names(chunk, identity())
    assert is_whole(chunk, identity())


@given(at=st.integers(0, 256 + SEAL_BYTES - 9), change=st.integers(1, 255))
def test_no_byte_of_payload_or_seal_can_change(at: int, change: int) -> None:
    chunk = slot()
    write_seal(chunk, identity())
    chunk[at] ^= change
    assert not is_whole(chunk, identity())


def test_everything_that_gives_the_bytes_meaning_is_in_the_identity() -> None:
    others = [
        identity(replace(SCOPE, namespace="mode")),
        identity(replace(SCOPE, namespace="modell", fingerprint=b"ayout")),
        identity(replace(SCOPE, fingerprint=b"layou")),
        identity(replace(SCOPE, rank=1, ranks=2)),
        identity(salt="b"),
        identity(salt=""),
        identity(tokens=[9, *TOKENS[1:]]),
        identity(tokens=[*TOKENS[:15], 9]),
        SCOPE.identities(TOKENS, "a", 0, 8, 8)[0],
        SCOPE.identities(TOKENS, "a", 8, 16, 4)[1],
    ]
    assert len({identity(), *others}) == len(others) + 1


def test_tokens_after_a_chunk_do_not_matter_and_stores_in_parts_agree() -> None:
    assert identity() == identity(tokens=TOKENS[:16])
    parts = [SCOPE.identities(TOKENS, "a", at, at + 8, 8)[0] for at in (0, 8, 16, 24)]
    assert parts == SCOPE.identities(TOKENS, "a", 0, 32, 8)
