"""Pages in device memory: gathered there into one contiguous run, then moved by one copy.

A page of one layer of one block is often a few KiB, and a copy over the bus that small reaches a
fraction of its speed. So small pages are gathered by the device itself, many blocks at once, into
a staging run in its own memory, and the run crosses the bus whole; large pages cross as they are.
Everything is queued on one stream of our own, whose order keeps the staging run to one user at a
time, and which runs beside the engine's.

Host memory is copied from and to at the bus's full speed only where it is page-locked: see
:meth:`DevicePages.pin`. Any other goes through a page-locked run of ours, and one copy more.

Needs torch and numpy alone; Triton, where it is there, gathers all layers with one kernel.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from kvstore.errors import ConfigError

Bytes = npt.NDArray[np.uint8]

STRAIGHT_BYTES = 512 << 10
"""Pages from this size on cross the bus by copies of their own."""

STAGING_BYTES = 32 << 20
"""Size of the staging run: long enough that starting a copy costs nothing beside it."""


class LayerPages:
    """The layers' pages on one device (any), and their copies on that device.

    ``layers``: one int8 ``[blocks, page_bytes]`` per layer, all of one shape, pages contiguous.
    Copies are queued on the current stream. A run is contiguous int8 of ``len(blocks) *
    block_bytes``: block after block, each layer after layer.
    """

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        self.layers = len(layers)
        self.blocks, self.page_bytes = layers[0].shape
        self.block_bytes = self.layers * self.page_bytes
        self.device = layers[0].device
        self._bytes = list(layers)
        self._words = [_as_words(layer) for layer in layers]
        self._table = None
        if self.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
            from kvstore.paged_kernels import PageTable  # optional

            self._table = PageTable.of(self._words)

    def gather_device(self, blocks: Sequence[int], run: torch.Tensor) -> None:
        """Queue a copy of the pages of ``blocks`` to ``run``, on this device."""
        ids, run_words = self._ids(blocks), _as_words(run.view(len(blocks), self.block_bytes))
        if self._table is not None:
            self._table.gather(ids, run_words)
            return
        pages = run_words.view(len(blocks), self.layers, -1)
        for number, layer in enumerate(self._words):
            torch.index_select(layer, 0, ids, out=pages[:, number])

    def scatter_device(self, blocks: Sequence[int], run: torch.Tensor) -> None:
        """Queue a copy of ``run``, on this device, to the pages of ``blocks``."""
        ids, run_words = self._ids(blocks), _as_words(run.view(len(blocks), self.block_bytes))
        if self._table is not None:
            self._table.scatter(ids, run_words)
            return
        pages = run_words.view(len(blocks), self.layers, -1)
        for number, layer in enumerate(self._words):
            layer.index_copy_(0, ids, pages[:, number])

    def wipe_device(self, blocks: Sequence[int]) -> None:
        """Queue zeros to the pages of ``blocks``."""
        ids = self._ids(blocks)
        for layer in self._words:
            layer.index_fill_(0, ids, 0)

    def pages(self, blocks: Sequence[int]) -> Iterator[torch.Tensor]:
        """Every page of ``blocks`` by itself, in the order of a run."""
        self._require(blocks)
        return (layer[block] for block in blocks for layer in self._bytes)

    def _ids(self, blocks: Sequence[int]) -> torch.Tensor:
        """``blocks`` on the device; from page-locked memory, so that nothing waits for the copy."""
        self._require(blocks)
        ids = torch.tensor(blocks, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return ids.to(self.device, non_blocking=True)

    def _require(self, blocks: Sequence[int]) -> None:
        """Kernels check no bounds, and a wrong block would be somebody else's."""
        if not all(0 <= block < self.blocks for block in blocks):
            raise IndexError(f"these pages have blocks 0 to {self.blocks - 1}, not {blocks}")


def _as_words(layer: torch.Tensor) -> torch.Tensor:
    """The same memory in words of 8 bytes. Raises ConfigError for pages of another granularity."""
    try:
        return layer.view(torch.int64)
    except RuntimeError:
        raise ConfigError(
            f"KV pages of {layer.shape[-1]} bytes: a page must be whole words of 8 bytes"
        ) from None


class DevicePages:
    """KV pages in device memory, moved from and to host memory. Any thread; one call at a time.

    ``layers``: as for :class:`LayerPages`. ``straight_bytes``: pages at least this long are not
    staged.
    """

    def __init__(
        self, layers: Sequence[torch.Tensor], *, straight_bytes: int = STRAIGHT_BYTES
    ) -> None:
        self._pages = LayerPages(layers)
        self.layers, self.blocks = self._pages.layers, self._pages.blocks
        self.page_bytes, self.block_bytes = self._pages.page_bytes, self._pages.block_bytes
        self.device = self._pages.device
        self._straight = self.page_bytes >= straight_bytes
        self._at_once = max(1, STAGING_BYTES // self._pages.block_bytes)
        self._stream = torch.cuda.Stream(self.device)
        size = self._at_once * self._pages.block_bytes
        self._staging = torch.empty(
            0 if self._straight else size, dtype=torch.int8, device=self.device
        )
        self._bounce = torch.empty(0, dtype=torch.int8)
        self._bounce_bytes = size
        self._lock = threading.Lock()

    def pin(self, buffer: Bytes) -> None:
        """Page-lock a buffer that is kept; copies from and to any part of it then go straight.

        It must be unpinned before its memory is freed. Raises ConfigError when the system refuses.
        """
        runtime = torch.cuda.cudart()
        code = int(runtime.cudaHostRegister(buffer.ctypes.data, buffer.nbytes, 0))
        if code != 0:
            raise ConfigError(f"cannot page-lock {buffer.nbytes} bytes (CUDA error {code})")

    def unpin(self, buffer: Bytes) -> None:
        """Undo ``pin``."""
        torch.cuda.cudart().cudaHostUnregister(buffer.ctypes.data)

    def gather(self, blocks: Sequence[int], buffer: Bytes) -> None:
        """Copy ``blocks`` to ``buffer`` and wait: block after block, each layer after layer."""
        with self._lock, torch.cuda.stream(self._stream):
            for some, part in self._parts(blocks, buffer):
                locked = _page_locked(part)
                host = self._bounced(len(part)) if locked is None else locked
                self._queue_out(some, host)
                if locked is None:
                    self._stream.synchronize()
                    np.copyto(part, host.numpy().view(np.uint8))
            self._stream.synchronize()

    def scatter(self, blocks: Sequence[int], buffer: Bytes) -> None:
        """Copy ``buffer`` to the pages of ``blocks`` and wait until it is there."""
        with self._lock, torch.cuda.stream(self._stream):
            for some, part in self._parts(blocks, buffer):
                locked = _page_locked(part)
                host = self._bounced(len(part)) if locked is None else locked
                if locked is None:
                    self._stream.synchronize()  # the part before still leaves the same memory
                    np.copyto(host.numpy().view(np.uint8), part)
                self._queue_in(some, host)
            self._stream.synchronize()

    def gather_device(self, blocks: Sequence[int], run: torch.Tensor) -> None:
        """Copy ``blocks`` to ``run``, on this device, and wait."""
        with self._lock, torch.cuda.stream(self._stream):
            self._pages.gather_device(blocks, run)
            self._stream.synchronize()

    def scatter_device(self, blocks: Sequence[int], run: torch.Tensor) -> None:
        """Copy ``run``, on this device, to the pages of ``blocks`` and wait."""
        with self._lock, torch.cuda.stream(self._stream):
            self._pages.scatter_device(blocks, run)
            self._stream.synchronize()

    def wipe(self, blocks: Sequence[int]) -> None:
        """Overwrite ``blocks`` with zeros and wait; for the engine's thread.

        Steps it has queued may still write them, so their end is awaited first.
        """
        self.fence()
        with self._lock, torch.cuda.stream(self._stream):
            self._pages.wipe_device(blocks)
            self._stream.synchronize()

    def fence(self) -> None:
        """Called by the engine's thread: what it has queued so far is in the pages on return.

        The engine computes on a stream of its own that only its thread knows.
        """
        torch.cuda.current_stream(self.device).synchronize()

    def _parts(self, blocks: Sequence[int], buffer: Bytes) -> Iterator[tuple[Sequence[int], Bytes]]:
        """Blocks and their bytes, as many at a time as the staging run holds."""
        size = self._pages.block_bytes
        for at in range(0, len(blocks), self._at_once):
            some = blocks[at : at + self._at_once]
            yield some, buffer[at * size : (at + len(some)) * size]

    def _queue_out(self, blocks: Sequence[int], host: torch.Tensor) -> None:
        if self._straight:
            for page, piece in self._pieces(blocks, host):
                piece.copy_(page, non_blocking=True)
            return
        run = self._staging[: len(host)]
        self._pages.gather_device(blocks, run)
        host.copy_(run, non_blocking=True)

    def _queue_in(self, blocks: Sequence[int], host: torch.Tensor) -> None:
        if self._straight:
            for page, piece in self._pieces(blocks, host):
                page.copy_(piece, non_blocking=True)
            return
        run = self._staging[: len(host)]
        run.copy_(host, non_blocking=True)
        self._pages.scatter_device(blocks, run)

    def _pieces(
        self, blocks: Sequence[int], host: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every page of ``blocks`` with its place in ``host``."""
        pieces = host.view(-1, self.page_bytes).unbind()
        return zip(self._pages.pages(blocks), pieces, strict=True)

    def _bounced(self, size: int) -> torch.Tensor:
        """``size`` bytes of a page-locked run of ours, made when it is first needed."""
        if not len(self._bounce):
            self._bounce = torch.empty(self._bounce_bytes, dtype=torch.int8, pin_memory=True)
        return self._bounce[:size]


def _page_locked(buffer: Bytes) -> torch.Tensor | None:
    """``buffer`` as a tensor where the device may copy from and to it by itself; else None."""
    if not buffer.flags.writeable:  # torch warns of every such array
        return None
    tensor = torch.from_numpy(buffer.view(np.int8))
    return tensor if tensor.is_pinned() else None
