"""Paged KV to and from host memory, beside one large page-locked copy of the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from bench.gpu.figures import Figure, figure, speeds
from kvstore.device_pages import STRAIGHT_BYTES, Bytes, DevicePages

PIECES = tuple(kib << 10 for kib in (12, 32, 64, 512, 2048))
"""Bytes of one page of one layer."""

LAYERS = 32
_POOL = 2
"""Blocks there are, for one that is moved: pages lie scattered in memory."""


def bound_of(piece: int) -> float:
    """What paged copies of pieces of this size must reach, of one large copy's speed."""
    return 0.95 if piece >= STRAIGHT_BYTES else 0.85


def size_name(piece: int) -> str:
    """``64k``, ``2m``."""
    return f"{piece >> 20}m" if piece >= 1 << 20 else f"{piece >> 10}k"


@dataclass(frozen=True)
class Bed:
    """One size of piece: paged memory, the blocks to move, and page-locked memory for them."""

    layers: list[torch.Tensor]
    blocks: list[int]
    host: torch.Tensor
    device: torch.Tensor

    @classmethod
    def of(cls, piece: int, size: int) -> Bed:
        """About ``size`` bytes in pieces of ``piece`` bytes."""
        count = max(1, size // (piece * LAYERS))
        shape = (count * _POOL, piece)
        layers = [
            torch.randint(-128, 128, shape, dtype=torch.int8, device="cuda") for _ in range(LAYERS)
        ]
        blocks = random.Random(piece).sample(range(count * _POOL), count)
        moved = count * piece * LAYERS
        host = torch.empty(moved, dtype=torch.int8, pin_memory=True)
        return cls(layers, blocks, host, torch.empty(moved, dtype=torch.int8, device="cuda"))

    @property
    def buffer(self) -> Bytes:
        """``host``, as KVPages takes it."""
        buffer: Bytes = self.host.numpy().view(np.uint8)
        return buffer

    def check(self, pages: DevicePages) -> None:
        """A way that moves other bytes is not fast. Raises RuntimeError."""
        wanted = torch.stack([layer[self.blocks] for layer in self.layers], dim=1).cpu()
        pages.gather(self.blocks, self.buffer)
        out = torch.equal(self.host, wanted.view(-1))
        for layer in self.layers:
            layer[self.blocks] = 0
        pages.scatter(self.blocks, self.buffer)
        back = torch.stack([layer[self.blocks] for layer in self.layers], dim=1).cpu()
        if not out or not torch.equal(back, wanted):
            raise RuntimeError(f"pieces of {self.layers[0].shape[1]} bytes arrived damaged")


def figures(size: int, rounds: int, pieces: Sequence[int] = PIECES) -> Iterator[Figure]:
    """Every size of piece, out and in, staged and straight; the way DevicePages takes is bound."""
    for piece in pieces:
        bed = Bed.of(piece, size)
        staged = DevicePages(bed.layers, straight_bytes=piece + 1)
        straight = DevicePages(bed.layers, straight_bytes=piece)
        bed.check(staged)
        bed.check(straight)
        taken, other = (straight, staged) if piece >= STRAIGHT_BYTES else (staged, straight)
        yield from _there_and_back(bed, taken, other, size_name(piece), rounds)
        yield _on_device(bed, staged, size_name(piece), rounds)


def _there_and_back(
    bed: Bed, taken: DevicePages, other: DevicePages, name: str, rounds: int
) -> Iterator[Figure]:
    directions = (
        ("d2h", partial(bed.host.copy_, bed.device, non_blocking=True), DevicePages.gather),
        ("h2d", partial(bed.device.copy_, bed.host, non_blocking=True), DevicePages.scatter),
    )
    for direction, whole, move in directions:
        ways: dict[str, Callable[[], None]] = {
            "whole": awaited(whole),
            "taken": partial(move, taken, bed.blocks, bed.buffer),
            "other": partial(move, other, bed.blocks, bed.buffer),
        }
        found = speeds(ways, len(bed.host), rounds)
        bound = bound_of(taken.page_bytes)
        yield figure(f"{direction}_{name}_vs_pinned", bound, found["taken"], found["whole"])
        yield figure(f"{direction}_{name}_other_way", None, found["other"], found["whole"])


def _on_device(bed: Bed, pages: DevicePages, name: str, rounds: int) -> Figure:
    """The gathering alone, beside a copy within the device."""
    again = torch.empty_like(bed.device)
    found = speeds(
        {
            "copy": awaited(partial(again.copy_, bed.device)),
            "gather": awaited(partial(pages.gather_device, bed.blocks, bed.device)),
        },
        len(bed.device),
        rounds,
    )
    return figure(f"gather_{name}_vs_device_copy", None, found["gather"], found["copy"])


def awaited(queue: Callable[[], object]) -> Callable[[], None]:
    """A way: call ``queue`` and wait until the device is done."""

    def way() -> None:
        queue()
        torch.cuda.synchronize()

    return way
