"""Copies of whole blocks between paged KV memory and contiguous bytes.

The engine allocates one page per (layer, block). Nothing here looks inside a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from kvstore.device_pages import Bytes, DevicePages
from kvstore.errors import ConfigError

__all__ = ["Bytes", "HostMemory", "HostPages", "KVPages", "Vector", "open_pages", "vector_of"]


Vector = npt.NDArray[np.uint64]
"""``struct iovec[blocks, layers]``: uint64 ``[blocks, layers, 2]``, addresses and lengths."""


class KVPages(Protocol):
    """Paged KV memory of one rank.

    ``gather`` and ``scatter`` move whole blocks from or to ``buffer`` (uint8, ``len(blocks) *
    block_bytes``; block after block, each layer after layer) and return when the bytes have moved.
    ``wipe`` overwrites whole blocks with zeros; the engine's thread calls it, after whatever it has
    queued, and nothing that it queues later comes before. Callers keep two threads off one block.
    """

    @property
    def layers(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...

    def gather(self, blocks: Sequence[int], buffer: Bytes) -> None: ...

    def scatter(self, blocks: Sequence[int], buffer: Bytes) -> None: ...

    def wipe(self, blocks: Sequence[int]) -> None: ...

    def fence(self) -> None:
        """Called by the engine's thread: what it has queued so far is in the pages on return."""


def _page_views(caches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The engine's pages as int8 ``[blocks, page_bytes]`` for each layer, sharing its memory.

    Layers of different KV groups may lie in the same pages, which are then listed once: a block is
    one group's, and so are its pages.
    """
    views = []
    for cache in {cache.data_ptr(): cache for cache in caches}.values():
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


@dataclass(frozen=True)
class HostMemory:
    """Where host pages lie in this process: page (layer, block) is at base + both steps' worth."""

    base: int
    layer_step: int
    block_step: int


class HostPages:
    """Pages in this machine's memory; copies release the interpreter lock."""

    def __init__(self, caches: Sequence[torch.Tensor]) -> None:
        views = [view.numpy().view(np.uint8) for view in _page_views(caches)]
        self.layers = len(views)
        self.blocks, self.page_bytes = views[0].shape
        self.block_bytes = self.layers * self.page_bytes
        self._pages = _one_array(views)
        layer_step, block_step, _ = self._pages.strides
        self.memory = HostMemory(self._pages.ctypes.data, layer_step, block_step)
        layers = np.arange(self.layers, dtype=np.uint64) * np.uint64(layer_step)
        self._layer_addresses = np.uint64(self.memory.base) + layers

    def gather(self, blocks: Sequence[int], buffer: Bytes) -> None:
        """Copy ``blocks`` out of the pages."""
        rows = buffer.reshape(len(blocks), self.layers, self.page_bytes)
        for row, block in zip(rows, blocks, strict=True):
            np.copyto(row, self._pages[:, block])

    def scatter(self, blocks: Sequence[int], buffer: Bytes) -> None:
        """Copy ``buffer`` into the pages of ``blocks``."""
        rows = buffer.reshape(len(blocks), self.layers, self.page_bytes)
        for row, block in zip(rows, blocks, strict=True):
            np.copyto(self._pages[:, block], row)

    def fence(self) -> None:
        """See KVPages. On CPU a forward pass returns when it is done."""

    def pieces(self, block: int) -> Iterable[Bytes]:
        """The pages of ``block``, layer after layer, without a copy."""
        return self._pages[:, block]

    def vector(self, blocks: Sequence[int]) -> Vector:
        """Where the pages of ``blocks`` lie. Raises IndexError for a block that is not there."""
        if min(blocks) < 0 or max(blocks) >= self.blocks:
            raise IndexError(f"blocks {min(blocks)} to {max(blocks)} of {self.blocks}")
        return vector_of(blocks, self.memory.block_step, self._layer_addresses, self.page_bytes)

    def wipe(self, blocks: Sequence[int]) -> None:
        """Overwrite ``blocks`` with zeros. Raises IndexError for a block that is not there."""
        for block in blocks:
            if not 0 <= block < self.blocks:
                raise IndexError(f"block {block} of {self.blocks}")
            self._pages[:, block] = 0


def vector_of(
    blocks: Sequence[int], block_step: int, layers: npt.NDArray[np.uint64], page_bytes: int
) -> Vector:
    """The pages of ``blocks``; ``layers``: the address of block 0 in each layer."""
    vector = np.empty((len(blocks), len(layers), 2), dtype=np.uint64)
    ids = np.array(blocks, dtype=np.uint64)
    np.add((ids * np.uint64(block_step))[:, None], layers, out=vector[:, :, 0])
    vector[:, :, 1] = page_bytes
    return vector


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


def open_pages(caches: Sequence[torch.Tensor]) -> KVPages:
    """Pages of the engine's KV tensors (one per layer, block first), by where they live.

    Raises ConfigError for a layout whose blocks cannot be moved whole.
    """
    if not caches:
        raise ConfigError("the engine registered no KV cache")
    return HostPages(caches) if caches[0].device.type == "cpu" else DevicePages(_page_views(caches))
