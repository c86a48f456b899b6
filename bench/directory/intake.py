"""How fast a proxy takes in what a worker's relay tells it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from bench.directory.world import (
    LENGTH,
    OWN,
    SHARED,
    Shape,
    World,
    joined_names,
    worker_name,
)
from kvstore.codec import decode, encode
from kvstore.messages import Announce, Delta, Snapshot

BLOCKS_A_MESSAGE = 64

BURST = 64
"""Messages that a proxy takes from a socket at a time, if as many have come."""

_MESSAGES = 1024
_HELD = 1_000_000
_NEW = np.uint64(1 << 52)


class Intake:
    """The feed of one worker that stores and evicts by turns, the oldest block first.

    It always holds about a million, which nobody else does.
    """

    def __init__(self) -> None:
        shape = Shape(_HELD, workers=1)
        self._world = World(shape)
        self._filled = shape.conversations * (LENGTH - SHARED)
        self._seq = 0

    def per_second(self, burst: int) -> float:
        """Block operations, decoding included, of messages that come ``burst`` at a time."""
        frames = [encode(change) for change in self._changes()]
        directory = self._world.directory
        began = time.perf_counter()
        for at in range(0, len(frames), burst):
            directory.apply_all(_decoded(frames[at : at + burst]), 0.0)
        seconds = time.perf_counter() - began
        assert directory.wants(worker_name(0)) == ("g", self._seq), "a change was lost"
        return len(frames) * BLOCKS_A_MESSAGE / seconds

    def _changes(self) -> Iterator[Delta]:
        for _ in range(_MESSAGES):
            first = self._seq // 2 * BLOCKS_A_MESSAGE
            stored = self._seq % 2 == 0
            if not stored and first < self._filled:
                start = OWN + np.uint64(first)
            else:
                start = _NEW + np.uint64(first if stored else first - self._filled)
            names = joined_names(start + np.arange(BLOCKS_A_MESSAGE, dtype=np.uint64))
            self._seq += 1
            added, removed = (names, b"") if stored else (b"", names)
            yield Delta(worker_name(0), "g", self._seq, "gpu", False, added, removed)


def _decoded(frames: list[bytes]) -> list[Announce | Snapshot | Delta]:
    messages = (decode(frame) for frame in frames)
    return [one for one in messages if isinstance(one, Announce | Snapshot | Delta)]
