"""Triton kernels: pages of many blocks to one contiguous run of words, and back; its digests.

The layers lie anywhere in device memory, so a page is found as ``first + layers[layer] + block *
stride``: words, counted from the first layer's start. One program moves one piece of one page.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its arguments one by one

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_PIECE = 1024
"""Words of 8 bytes that one program moves."""

_SUMMED = 4096
"""Halves of words that one program sums."""


@triton.jit  # type: ignore[untyped-decorator]
def _place(
    layers: torch.Tensor,
    blocks: torch.Tensor,
    layer_count: int,
    stride: int,
    words: int,
    PIECE: tl.constexpr,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where this program's words are in the pages, where in the run, and which of them exist."""
    page = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    block = tl.load(blocks + page // layer_count)
    start = tl.load(layers + page % layer_count) + block * stride
    return start + word, page * words + word, word < words


@triton.jit  # type: ignore[untyped-decorator]
def _gather(
    first: torch.Tensor,
    layers: torch.Tensor,
    blocks: torch.Tensor,
    run: torch.Tensor,
    layer_count: int,
    stride: int,
    words: int,
    PIECE: tl.constexpr,
) -> None:
    source, target, exists = _place(layers, blocks, layer_count, stride, words, PIECE)
    tl.store(run + target, tl.load(first + source, mask=exists), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _scatter(
    first: torch.Tensor,
    layers: torch.Tensor,
    blocks: torch.Tensor,
    run: torch.Tensor,
    layer_count: int,
    stride: int,
    words: int,
    PIECE: tl.constexpr,
) -> None:
    target, source, exists = _place(layers, blocks, layer_count, stride, words, PIECE)
    tl.store(first + target, tl.load(run + source, mask=exists), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _weigh(
    halves: torch.Tensor,
    weights: torch.Tensor,
    sums: torch.Tensor,
    count: int,
    PIECE: tl.constexpr,
) -> None:
    block = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    exists = at < count
    wide = tl.load(halves + block * count + at, mask=exists, other=0).to(tl.int64)
    first = tl.load(weights + at, mask=exists, other=0)
    second = tl.load(weights + count + at, mask=exists, other=0)
    tl.atomic_add(sums + 2 * block, tl.sum(wide * first))
    tl.atomic_add(sums + 2 * block + 1, tl.sum(wide * second))


def weighted_sums(halves: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """int64 ``[blocks, 2]``: int32 ``[blocks, n]`` times int64 ``[2, n]``, summed modulo 2^64."""
    blocks, count = halves.shape
    sums = torch.zeros((blocks, 2), dtype=torch.int64, device=halves.device)
    _weigh[blocks, -(-count // _SUMMED)](halves, weights, sums, count, PIECE=_SUMMED)
    return sums


@dataclass(frozen=True)
class PageTable:
    """Where the layers' pages are. ``first``: int64 ``[blocks, words]``, the first layer's.

    ``layers``: int64 ``[layers]`` on the device, each layer's distance from ``first`` in words.
    Every layer has the strides of ``first``.
    """

    first: torch.Tensor
    layers: torch.Tensor

    @classmethod
    def of(cls, views: list[torch.Tensor]) -> PageTable:
        """The table of ``views``, one int64 ``[blocks, words]`` per layer."""
        start = views[0].data_ptr()
        distances = [(view.data_ptr() - start) // 8 for view in views]
        return cls(views[0], torch.tensor(distances, dtype=torch.int64, device=views[0].device))

    def gather(self, blocks: torch.Tensor, run: torch.Tensor) -> None:
        """Queue: pages of ``blocks`` (int64, on the device) to ``run``, block after block."""
        _gather[self._grid(blocks)](*self._arguments(blocks, run), PIECE=_PIECE)

    def scatter(self, blocks: torch.Tensor, run: torch.Tensor) -> None:
        """Queue: ``run`` to the pages of ``blocks``."""
        _scatter[self._grid(blocks)](*self._arguments(blocks, run), PIECE=_PIECE)

    def _grid(self, blocks: torch.Tensor) -> tuple[int, int]:
        pieces = -(-self.first.shape[1] // _PIECE)
        return len(blocks) * len(self.layers), pieces

    def _arguments(self, blocks: torch.Tensor, run: torch.Tensor) -> tuple[object, ...]:
        shape = len(self.layers), self.first.stride(0), self.first.shape[1]
        return self.first, self.layers, blocks, run, *shape
