"""Buffers between pages and the wire: faulted in once and kept, each for one batch at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kvstore.pages import Bytes

BUFFERS = 16
BUFFERS_OF_ONE = 4
BATCH_BYTES = 4 << 20
MAX_BATCH_BLOCKS = 4096
"""Digests that a message takes."""


class Sending(Protocol):
    """Whether a buffer that was handed on is still being read."""

    @property
    def done(self) -> bool: ...


class Staging:
    """``BUFFERS`` buffers of about ``BATCH_BYTES``, at least one block each, for all peers.

    A block is never split: frames of 1 to 16 MiB were found to move equally fast.

    One peer gets ``BUFFERS_OF_ONE`` at most, so that who takes nothing keeps nobody else waiting.
    """

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.batch_blocks = min(MAX_BATCH_BLOCKS, max(1, BATCH_BYTES // block_bytes))
        size = self.batch_blocks * block_bytes
        self._buffers = [np.ones(size, dtype=np.uint8) for _ in range(BUFFERS)]
        self._sendings: list[Sending | None] = [None] * BUFFERS
        self._peers: list[bytes] = [b""] * BUFFERS

    def free(self) -> int | None:
        """The number of a buffer that may be written, None when all are on the way."""
        for number, sending in enumerate(self._sendings):
            if sending is None or sending.done:
                self._sendings[number] = None
                return number
        return None

    def buffer(self, number: int, blocks: int) -> Bytes:
        """The first ``blocks`` blocks of buffer ``number``."""
        return self._buffers[number][: blocks * self.block_bytes]

    def lend(self, number: int, sending: Sending, peer: bytes) -> None:
        """The buffer is on its way to ``peer``, and is read until ``sending`` is done."""
        self._sendings[number], self._peers[number] = sending, peer

    def free_for(self, peer: bytes) -> bool:
        """Whether ``peer`` may have another buffer, if one is free."""
        lent = sum(
            sending is not None and not sending.done and holder == peer
            for sending, holder in zip(self._sendings, self._peers, strict=True)
        )
        return lent < BUFFERS_OF_ONE
