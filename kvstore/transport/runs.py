"""Blocks between a rank's pages and the runs of its lanes, which lie on the same device.

In host memory a block's digest is the configured one; in device memory it is made there
(:mod:`kvstore.device_digest`), so that no byte of KV crosses the bus.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from kvstore.device_digest import DIGEST_BYTES, block_digests
from kvstore.device_pages import DevicePages
from kvstore.errors import ConfigError
from kvstore.lane import Limits
from kvstore.messages import DigestName, LaneKind
from kvstore.pages import HostPages, KVPages
from kvstore.receiving import Placement
from kvstore.sending import Batch
from kvstore.transport.cargo import Frame
from kvstore.transport.collective import Bed
from kvstore.transport.communicator import (
    Communicator,
    ControlStore,
    GlooCommunicator,
    NcclCommunicator,
)
from kvstore.transport.digests import digest_of

SLOT_BYTES = 4 << 20
"""About how much one shipment carries; at least one block."""

MOST_BLOCKS = 4096
"""Of one shipment: more digests than that fit into no message."""

LIMITS = Limits()


class Runs(Protocol):
    """What one rank's lanes carry. A run is int8 ``[blocks * block_bytes]``, block after block."""

    @property
    def kind(self) -> LaneKind: ...

    @property
    def device(self) -> str:
        """The GPU's UUID, "" for host memory."""
        ...

    def load(self, batch: Batch, run: torch.Tensor) -> tuple[bytes, ...]:
        """Copy the batch's blocks to ``run`` and wait; the digests of what is there."""
        ...

    def place(self, placement: Placement, run: torch.Tensor) -> int | None:
        """Copy ``run`` into the pages if every digest is right; else the first that is not."""
        ...

    def bed(self, address: str) -> Bed:
        """What lanes are built with; ``address`` is of this host, where the other end is."""
        ...


class HostRuns:
    """Between processes' host memory, by gloo."""

    kind: LaneKind = "gloo"
    device = ""

    def __init__(self, pages: HostPages, digest: DigestName) -> None:
        self._pages = pages
        self._digest = digest_of(digest)

    def load(self, batch: Batch, run: torch.Tensor) -> tuple[bytes, ...]:
        """See Runs."""
        buffer = run.numpy().view(np.uint8)
        self._pages.gather(batch.block_ids, buffer)
        return self._digest.of(batch.name, buffer.reshape(len(batch.block_ids), 1, -1))

    def place(self, placement: Placement, run: torch.Tensor) -> int | None:
        """See Runs."""
        return Frame(run.numpy().view(np.uint8).data, self._digest).place(self._pages, placement)

    def bed(self, address: str) -> Bed:
        """See Runs."""

        def connect(store: ControlStore, rank: int) -> Communicator:
            return GlooCommunicator(store, rank, address, LIMITS.build_seconds)

        return _bed(connect, torch.device("cpu"), self._pages.block_bytes)


class DeviceRuns:
    """Between GPUs, by NCCL. With digest "none", nothing is checked."""

    kind: LaneKind = "nccl"

    def __init__(self, pages: DevicePages, digest: DigestName) -> None:
        self._pages = pages
        self._checked = digest != "none"
        self.device = str(torch.cuda.get_device_properties(pages.device).uuid)

    def load(self, batch: Batch, run: torch.Tensor) -> tuple[bytes, ...]:
        """See Runs."""
        self._pages.gather_device(batch.block_ids, run)
        return self._digests(run)

    def place(self, placement: Placement, run: torch.Tensor) -> int | None:
        """See Runs."""
        pairs = zip(self._digests(run), placement.digests, strict=True)
        for index, (found, told) in enumerate(pairs):
            if found != told:
                return index
        self._pages.scatter_device(placement.block_ids, run)
        return None

    def bed(self, address: str) -> Bed:
        """See Runs. NCCL finds its own way to the other end."""
        del address
        device = self._pages.device

        def connect(store: ControlStore, rank: int) -> Communicator:
            return NcclCommunicator(store, rank, device, LIMITS.build_seconds)

        return _bed(connect, device, self._pages.block_bytes)

    def _digests(self, run: torch.Tensor) -> tuple[bytes, ...]:
        size: int = self._pages.block_bytes
        if not self._checked:
            blocks: int = len(run) // size
            return (bytes(DIGEST_BYTES),) * blocks
        with torch.cuda.device(run.device):
            return block_digests(run, size)


def runs_of(pages: KVPages, digest: DigestName) -> Runs:
    """By where the pages live. Raises ConfigError for pages of any other kind."""
    if isinstance(pages, HostPages):
        return HostRuns(pages, digest)
    if isinstance(pages, DevicePages):
        return DeviceRuns(pages, digest)
    raise ConfigError("lanes carry KV of host memory or of a GPU only")


def _bed(
    connect: Callable[[ControlStore, int], Communicator], device: torch.device, block_bytes: int
) -> Bed:
    blocks = min(MOST_BLOCKS, max(1, SLOT_BYTES // block_bytes))
    return Bed(connect, device, block_bytes, blocks, LIMITS)
