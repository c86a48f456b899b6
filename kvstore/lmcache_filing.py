"""Under which names, and in slots of what size, a prompt's KV is filed in LMCache.

Chunks are filed as LMCache means them to be: by all tokens up to their end. A window is filed
under a namespace of its own as the one chunk of a made-up prompt, which is a digest of all tokens
before it: LMCache's lookups go from a prompt's start to the first gap, and there is no window
before most chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvstore.lmcache_tier_link import ChunksKey, Naming
from kvstore.messages import Filed
from kvstore.tier import TierOp
from kvstore.tier_seal import Scope
from kvstore.tier_shape import Part, TierShape

_DIGEST_TOKENS = 8


@dataclass(frozen=True)
class Filing:
    """How one part of prompts is filed: an object is a slot of up to ``blocks`` blocks.

    ``parts`` objects, of all ranks and parts, are what one chunk's blocks need to be loaded by
    those who file in ``feed_scope``.
    """

    part: Part
    naming: Naming
    scope: Scope
    blocks: int
    chunk_tokens: int
    feed_scope: str
    parts: int

    def key(self, op: TierOp, session: str) -> ChunksKey:
        """LMCache's key of the op's objects, of this rank."""
        tokens, span = op.tokens[: op.end], (op.start, op.end)
        if self.part == "window":
            tokens, span = window_prompt(tokens, self.chunk_tokens), (0, self.chunk_tokens)
        return self.naming.key(tuple(tokens), op.salt, span, session, self.scope.rank)

    def filed(self, op: TierOp, key: ChunksKey, positions: Iterable[int]) -> list[Filed]:
        """Which blocks the op's objects at these positions hold, for the tier's server.

        ``key`` is that of all of them; those in between are another worker's to fill.
        """
        chunk = self.chunk_tokens
        size = len(op.names) // ((key.end - key.start) // chunk)
        return [
            Filed(
                scope=self.feed_scope,
                parts=self.parts,
                session=key.request_id,
                rank=self.scope.rank,
                start=key.start + run.start * chunk,
                end=key.start + run.stop * chunk,
                names=op.names[run.start * size : run.stop * size],
            )
            for run in _runs(positions)
        ]

    def identities(self, op: TierOp) -> list[bytes]:
        """What the seals of the op's objects must name."""
        return self.scope.identities(op.tokens, op.salt, op.start, op.end, self.chunk_tokens)


def filings(naming: Naming, scope: Scope, shape: TierShape) -> dict[Part, Filing]:
    """How each part of a model of this shape is filed."""
    chunks = Filing(
        part="chunks",
        naming=naming,
        scope=scope,
        blocks=shape.chunk_blocks,
        chunk_tokens=shape.chunk_tokens,
        feed_scope=f"{naming.namespace}/{naming.ranks}",
        parts=naming.ranks * (1 + shape.windowed),
    )
    found: dict[Part, Filing] = {"chunks": chunks}
    if shape.windowed:
        named = naming.of_windows()
        own = replace(scope, namespace=named.namespace)
        found["window"] = replace(
            chunks, part="window", naming=named, scope=own, blocks=shape.window_blocks
        )
    return found


def _runs(positions: Iterable[int]) -> list[range]:
    runs: list[range] = []
    for position in sorted(positions):
        if runs and runs[-1].stop == position:
            runs[-1] = range(runs[-1].start, position + 1)
        else:
            runs.append(range(position, position + 1))
    return runs


def window_prompt(tokens: Sequence[int], chunk_tokens: int) -> list[int]:
    """The made-up prompt, one chunk long, under which the window after ``tokens`` is filed."""
    flat = np.asarray(tokens, dtype="<u4").tobytes()
    digest = hashlib.blake2b(flat, digest_size=4 * _DIGEST_TOKENS).digest()
    words: list[int] = np.frombuffer(digest, dtype="<u4").tolist()
    return words + [0] * (chunk_tokens - _DIGEST_TOKENS)
