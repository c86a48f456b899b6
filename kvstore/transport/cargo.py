"""The bytes that came with a ``Blocks``: in a frame, or still in the sender's pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.errors import PeerGone
from kvstore.pages import HostPages, KVPages
from kvstore.receiving import Placement
from kvstore.transport.digests import Digest
from kvstore.transport.neighbour import Neighbour


def _first_other(told: Sequence[bytes], found: Sequence[bytes]) -> int | None:
    """The index of the first digest that is not as told."""
    if told == found:
        return None
    return next(index for index, digest in enumerate(told) if digest != found[index])


@dataclass(frozen=True)
class Frame:
    """Blocks in a message's second frame."""

    frame: memoryview
    digest: Digest

    @property
    def size(self) -> int:
        """See Cargo."""
        return len(self.frame)

    def place(self, pages: KVPages, placement: Placement) -> int | None:
        """See Cargo. Nothing is written unless all digests are right."""
        count = len(placement.block_ids)
        blocks = np.frombuffer(self.frame, dtype=np.uint8)
        found = self.digest.of(placement.name, blocks.reshape(count, 1, -1))
        wrong = _first_other(placement.digests, found)
        if wrong is None:
            pages.scatter(placement.block_ids, blocks)
        return wrong

    def release(self) -> None:
        """See Cargo. ZeroMQ's memory goes with its last reference."""


@dataclass(frozen=True)
class RemotePages:
    """Blocks that lie in the sender's pages."""

    neighbour: Neighbour
    blocks: tuple[int, ...]
    size: int
    digest: Digest

    def place(self, pages: KVPages, placement: Placement) -> int | None:
        """See Cargo. What was read and is not right is wiped: it may be anybody's."""
        assert isinstance(pages, HostPages)
        ids, digests = placement.block_ids, placement.digests

        def first_wrong(part: range) -> int | None:
            transfer, group, first = placement.name
            blocks = map(pages.pieces, ids[part.start : part.stop])
            found = self.digest.of((transfer, group, first + part.start), blocks)
            wrong = _first_other(digests[part.start : part.stop], found)
            return None if wrong is None else part[wrong]

        try:
            wrong = self.neighbour.read(self.blocks, ids, first_wrong)
        except PeerGone:
            pages.wipe(ids)
            raise
        if wrong is not None:
            pages.wipe(ids)
        return wrong

    def release(self) -> None:
        """See Cargo. They are nobody's to give back."""
