"""LMCache's own L1 in this process, small, with our tenants in it, for tests."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
from lmcache.v1.distributed.l1_manager import L1Manager

from kvstore.lmcache_server_module import _Listener
from kvstore.lmcache_tenants import LMCacheTenants

OBJECT = 60_000
TAKES = 61_440
"""An object's bytes with what they are aligned to."""

WRITER = "writer"


def layout(size: int = OBJECT) -> Any:
    return MemoryLayoutDesc(shapes=[torch.Size([1, 1, size])], dtypes=[torch.uint8])


def key(salt: str, number: int) -> Any:
    return ObjectKey(number.to_bytes(8, "big"), "model", 0, 0, salt)


def keys(salt: str, numbers: Iterable[int]) -> list[Any]:
    return [key(salt, number) for number in numbers]


@dataclass
class Heard:
    """In the place of the tier's feed."""

    changes: list[tuple[str, list[Any]]] = field(default_factory=list)

    def reserved(self, objects: list[Any]) -> None:
        self.changes.append(("reserved", objects))

    def stored(self, objects: list[Any]) -> None:
        self.changes.append(("stored", objects))

    def gone(self, objects: list[Any]) -> None:
        self.changes.append(("gone", objects))


class L1:
    """``objects`` fit into it."""

    def __init__(self, objects: int, *, write_ttl: int = 30, settle_seconds: float = 1.0) -> None:
        self.name = f"lmcache_l1_pool_test-{uuid.uuid4().hex[:12]}"
        memory = L1MemoryManagerConfig(objects * TAKES, use_lazy=False, shm_name=self.name)
        config = L1ManagerConfig(memory, write_ttl_seconds=write_ttl, read_ttl_seconds=60)
        self.manager = L1Manager(config)
        self.now = time.monotonic
        self.tenants = LMCacheTenants(self.manager, settle_seconds, lambda: self.now())
        self.heard = Heard()
        self.manager.register_listener(_Listener(self.heard, self.tenants))  # type: ignore[arg-type]
        self.segment = np.memmap(Path("/dev/shm") / self.name, dtype=np.uint8, mode="r+")

    def close(self) -> None:
        self.tenants.close()
        self.manager.close()

    def reserve(self, salt: str, numbers: Iterable[int], size: int = OBJECT) -> dict[int, Any]:
        """The memory of those that could be reserved, by number."""
        wanted = list(numbers)
        got = self.manager.reserve_write(
            keys=keys(salt, wanted),
            is_temporary=[False] * len(wanted),
            layout_desc=layout(size),
            tag=WRITER,
        )
        return {n: got[key(salt, n)][1] for n in wanted if got[key(salt, n)][1] is not None}

    def fill(self, objects: Iterable[Any], pattern: int) -> None:
        for found in objects:
            self.segment[found.shm_offset :][: found.shm_byte_length] = pattern

    def commit(self, salt: str, numbers: Iterable[int]) -> None:
        self.manager.finish_write(keys(salt, numbers), tag=WRITER)

    def store(self, salt: str, numbers: Iterable[int], pattern: int = 7) -> list[int]:
        """Which of them are there then."""
        reserved = self.reserve(salt, numbers)
        self.fill(reserved.values(), pattern)
        self.commit(salt, reserved)
        return list(reserved)

    def lock(self, salt: str, numbers: Iterable[int]) -> list[int]:
        """Locks those that are there, as a lookup."""
        wanted = list(numbers)
        got = self.manager.reserve_read(keys(salt, wanted))
        return [n for n in wanted if got[key(salt, n)][1] is not None]

    def unlock(self, salt: str, numbers: Iterable[int]) -> None:
        self.manager.finish_read(keys(salt, numbers))

    def held(self, salt: str, numbers: Iterable[int]) -> list[int]:
        """Those that a lookup finds; it unlocks them at once, and is not remembered."""
        found = self.lock(salt, numbers)
        self.unlock(salt, found)
        return found

    def patterned(self, pattern: int) -> int:
        """How many bytes of the shared memory are so."""
        return int((self.segment == pattern).sum())

    def free_is_blank(self) -> bool:
        """Whether there is nothing in all memory that L1 may hand out."""
        addresses = self.manager._memory_manager._allocator.pin_allocator.address_manager
        return not any(
            self.segment[block.start : block.start + block.size].any()
            for block in addresses._explicit_list
        )
