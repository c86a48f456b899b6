"""A directory as full as one likes, with blocks that lie as conversations leave them.

A conversation is 512 blocks: first its tenant's system prompt, which lies wherever one of that
tenant's conversations does, then its own. One in eight is held by two workers, and one in sixteen
has lost a block of its second half. Names are made from numbers, so that a world of 10**8 entries
need not be remembered to be asked about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.blockhash import NAME_BYTES
from kvstore.index import Directory
from kvstore.messages import PROTOCOL_VERSION, Announce, Snapshot

LENGTH = 512
"""Blocks of a conversation."""

SHARED = 64
"""Of these, its tenant's system prompt."""

_PART = 16_384
_LEASE = 3600.0
OWN = np.uint64(1 << 48)

Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Shape:
    """``entries``: pairs of a block and a holder of it, about."""

    entries: int
    workers: int = 8
    tenants: int = 1

    @property
    def label(self) -> str:
        """For people."""
        tenants = "tenant" if self.tenants == 1 else "tenants"
        return f"{self.entries:.0e} entries, {self.workers} workers, {self.tenants} {tenants}"

    @property
    def conversations(self) -> int:
        """As many as make that number of entries."""
        return max(self.workers, int(self.entries / (LENGTH - SHARED) / (1 + 1 / 8)))

    def homes(self, conversation: int) -> tuple[int, ...]:
        """The workers that hold it."""
        home = conversation % self.workers
        twice = _chance(conversation) % 8 == 0
        return (home, (home + 1) % self.workers) if twice else (home,)

    def has_hole(self, conversation: int) -> bool:
        """Whether one of its blocks is nowhere."""
        return _chance(conversation) // 8 % 16 == 0


class World:
    """A directory filled to a shape. ``entries`` counts what it holds."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.directory = Directory(_LEASE)
        self.entries = 0
        for worker in range(shape.workers):
            self._fill(worker)

    def prompt(self, conversation: int) -> list[bytes]:
        """The names of its blocks."""
        joined = joined_names(self._whole(conversation))
        return [joined[at : at + NAME_BYTES] for at in range(0, len(joined), NAME_BYTES)]

    def _fill(self, worker: int) -> None:
        name = worker_name(worker)
        self.directory.apply(announce(worker), 0.0)
        parts = list(self._parts(worker))
        for at, numbers in enumerate(parts):
            snapshot = Snapshot(name, "g", 0, at, len(parts), "gpu", joined_names(numbers))
            self.directory.apply(snapshot, 0.0)
        self.entries += self.directory.blocks(name, "gpu")

    def _parts(self, worker: int) -> Iterator[Numbers]:
        """What ``worker`` holds, in as many blocks as a message takes."""
        mine = [one for one in self._near(worker) if worker in self.shape.homes(one)]
        tenants = np.array(sorted({one % self.shape.tenants for one in mine}), dtype=np.uint64)
        held = [_shared(tenants).reshape(-1)]
        for at in range(0, len(mine), 1024):
            chosen = np.array(mine[at : at + 1024], dtype=np.uint64)
            own = _own(chosen)
            lost = [self.shape.has_hole(one) for one in mine[at : at + 1024]]
            own[lost, LENGTH // 2] = own[lost, 0]  # which it has twice then, instead of this one
            held.append(own.reshape(-1))
        numbers = np.concatenate(held)
        for at in range(0, len(numbers), _PART):
            yield numbers[at : at + _PART]

    def _near(self, worker: int) -> Iterator[int]:
        """Conversations that might be at home here."""
        for home in {worker, (worker - 1) % self.shape.workers}:
            yield from range(home, self.shape.conversations, self.shape.workers)

    def _whole(self, conversation: int) -> Numbers:
        one = np.array([conversation], dtype=np.uint64)
        tenant = one % np.uint64(self.shape.tenants)
        return np.concatenate([_shared(tenant)[0], _own(one)[0]])


def _chance(conversation: int) -> int:
    """A number that a conversation has by chance."""
    return conversation * 0x9E37_79B9_7F4A_7C15 % (1 << 64) >> 48


def worker_name(worker: int) -> str:
    """Of the worker with that number."""
    return f"prefill-{worker}"


def announce(worker: int) -> Announce:
    """A worker as its relay announces it."""
    return Announce(
        version=PROTOCOL_VERSION,
        worker=worker_name(worker),
        role="prefill",
        generation="g",
        state="ready",
        model="m",
        http="unix:/x",
        ship="zmq+ipc:///x",
        fingerprint="",
        block_size=16,
        max_model_len=1 << 17,
        capacity_blocks=1 << 20,
        seq=0,
    )


def joined_names(numbers: Numbers) -> bytes:
    """Names of blocks as hashes would be: nothing of the numbers is left in them."""
    names = np.empty((len(numbers), NAME_BYTES // 8), dtype="<u8")
    for column in range(names.shape[1]):
        names[:, column] = _mixed(numbers + np.uint64(column << 56))
    return names.tobytes()


def _shared(tenants: Numbers) -> Numbers:
    first = tenants * np.uint64(SHARED)
    numbers: Numbers = np.add.outer(first, np.arange(SHARED, dtype=np.uint64))
    return numbers


def _own(conversations: Numbers) -> Numbers:
    own = LENGTH - SHARED
    first = conversations * np.uint64(own) + OWN
    numbers: Numbers = np.add.outer(first, np.arange(own, dtype=np.uint64))
    return numbers


def _mixed(numbers: Numbers) -> Numbers:
    """splitmix64 (Steele, Lea and Flood 2014): every number to another one, without pattern."""
    state = numbers * np.uint64(0x9E37_79B9_7F4A_7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return state ^ (state >> np.uint64(31))
