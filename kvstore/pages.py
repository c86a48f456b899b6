"""Copies of whole blocks between paged KV memory and contiguous bytes.

The engine allocates one page per (layer, block). Nothing here looks inside a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from kvstore.errors import ConfigError

Bytes = npt.NDArray[np.uint8]


class KVPages(Protocol):
    """Paged KV memory of one rank.

    ``gather`` and ``scatter`` move block ``block`` from or to ``buffer`` (uint8, ``block_bytes``
    long) and return when the bytes have moved. Callers keep two threads off the same block.
    """

    layers: int
    blocks: int
    page_bytes: int

    def gather(self, block: int, buffer: Bytes) -> None: ...

    def scatter(self, block: int, buffer: Bytes) -> None: ...

    def fence(self) -> None:
        """Called by the engine's thread: what it has queued so far is in the pages on return."""


def _page_views(caches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Every layer as int8 ``[blocks, page_bytes]``, sharing memory with the engine's tensor."""
    views = []
    for cache in caches:
        page = cache[0]
        if not page.is_contiguous():
            raise ConfigError(
                "the engine's KV pages are not contiguous: run it with the LBHNC cache layout"
            )
        stride = cache.stride(0) * cache.element_size()
        raw = torch.empty(0, dtype=torch.int8, device=cache.device).set_(
            cache.untyped_storage(),
            cache.storage_offset() * cache.element_size(),
            (cache.shape[0], page.numel() * cache.element_size()),
            (stride, 1),
        )
        views.append(raw)
    if len({view.shape for view in views}) != 1:
        raise ConfigError("layers with different KV page sizes are not supported")
    return views


class HostPages:
    """Pages in this machine's memory; copies release the interpreter lock."""

    def __init__(self, caches: Sequence[torch.Tensor]) -> None:
        views = [view.numpy().view(np.uint8) for view in _page_views(caches)]
        self.layers = len(views)
        self.blocks, self.page_bytes = views[0].shape
        self._pages = _one_array(views)

    def gather(self, block: int, buffer: Bytes) -> None:
        """Copy block ``block`` out of the pages."""
        np.copyto(buffer.reshape(self.layers, self.page_bytes), self._pages[:, block])

    def scatter(self, block: int, buffer: Bytes) -> None:
        """Copy ``buffer`` into the pages of block ``block``."""
        np.copyto(self._pages[:, block], buffer.reshape(self.layers, self.page_bytes))

    def fence(self) -> None:
        """See KVPages. On CPU a forward pass returns when it is done."""


def _one_array(views: Sequence[Bytes]) -> Bytes:
    """``[layers, blocks, page_bytes]`` over the layers' memory, without a copy.

    vLLM places all layers at equal distances in one allocation.
    """
    starts = [view.__array_interface__["data"][0] for view in views]
    steps = {after - before for before, after in pairwise(starts)}
    if len(steps) > 1:
        raise ConfigError("the engine's layers are not evenly spaced in one KV allocation")
    first = views[0]
    step = steps.pop() if steps else 0
    return np.lib.stride_tricks.as_strided(
        first, (len(views), *first.shape), (step, *first.strides)
    )


class DevicePages:
    """Pages in device memory, copied through a pinned buffer on a stream of our own."""

    def __init__(self, caches: Sequence[torch.Tensor]) -> None:
        self._views = _page_views(caches)
        self.layers = len(self._views)
        self.blocks, self.page_bytes = self._views[0].shape
        self._device = self._views[0].device
        self._stream = torch.cuda.Stream(self._device)
        self._staging = torch.empty(
            (self.layers, self.page_bytes), dtype=torch.int8, pin_memory=True
        )

    def gather(self, block: int, buffer: Bytes) -> None:
        """Copy block ``block`` out of device memory."""
        with torch.cuda.stream(self._stream):
            for layer, view in enumerate(self._views):
                self._staging[layer].copy_(view[block], non_blocking=True)
        self._stream.synchronize()
        np.copyto(buffer.view(np.int8), self._staging.numpy().reshape(-1))

    def scatter(self, block: int, buffer: Bytes) -> None:
        """Copy ``buffer`` into device memory and wait until it is there."""
        np.copyto(self._staging.numpy().reshape(-1), buffer.view(np.int8))
        with torch.cuda.stream(self._stream):
            for layer, view in enumerate(self._views):
                view[block].copy_(self._staging[layer], non_blocking=True)
        self._stream.synchronize()

    def fence(self) -> None:
        """See KVPages. The engine computes on a stream of its own that only its thread knows."""
        torch.cuda.current_stream(self._device).synchronize()


def open_pages(caches: Sequence[torch.Tensor]) -> KVPages:
    """Pages of the engine's KV tensors (one per layer, block first), by where they live.

    Raises ConfigError for a layout whose blocks cannot be moved whole.
    """
    if not caches:
        raise ConfigError("the engine registered no KV cache")
    return HostPages(caches) if caches[0].device.type == "cpu" else DevicePages(caches)
