"""The bytes that came with a ``Blocks``: in a frame, or still in the sender's pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvstore.errors import PeerGone
from kvstore.pages import HostPages, KVPages
from kvstore.receiving import Placement
from kvstore.transport.digests import BlockName, Digest
from kvstore.transport.neighbour import Neighbour


def _name(placement: Placement, index: int) -> BlockName:
    return placement.transfer, placement.group, placement.first + index


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
        blocks = np.frombuffer(self.frame, dtype=np.uint8).reshape(count, -1)
        for index, digest in enumerate(placement.digests):
            if self.digest.of(_name(placement, index), (blocks[index],)) != digest:
                return index
        pages.scatter(placement.block_ids, blocks.reshape(-1))
        return None

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

        def right(index: int) -> bool:
            name = _name(placement, index)
            return self.digest.of(name, pages.pieces(ids[index])) == digests[index]

        try:
            wrong = self.neighbour.read(self.blocks, ids, right)
        except PeerGone:
            pages.wipe(ids)
            raise
        if wrong is not None:
            pages.wipe(ids)
        return wrong

    def release(self) -> None:
        """See Cargo. They are nobody's to give back."""
