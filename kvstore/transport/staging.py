"""Buffers between pages and the wire: faulted in once and kept, each for one batch at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

BUFFERS = 16
BATCH_BYTES = 1 << 20


class Sending(Protocol):
    """Whether a buffer that was handed on is still being read."""

    @property
    def done(self) -> bool: ...


class Staging:
    """``BUFFERS`` buffers of about ``BATCH_BYTES``, at least one block each, for all peers."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.batch_blocks = max(1, BATCH_BYTES // block_bytes)
        size = self.batch_blocks * block_bytes
        self._buffers = [np.ones(size, dtype=np.uint8) for _ in range(BUFFERS)]
        self._sendings: list[Sending | None] = [None] * BUFFERS

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

    def lend(self, number: int, sending: Sending) -> None:
        """The buffer is read until ``sending`` is done."""
        self._sendings[number] = sending
