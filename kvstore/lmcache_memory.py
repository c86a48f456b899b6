"""LMCache's memory (L1), and that whatever it frees is overwritten first.

Everything here leans on LMCache's insides, and on nothing else of ours leans on them;
``tests/contract/test_lmcache_memory.py`` holds them to it. All memory that L1 gives back, whoever
gives it back and why, passes one method of its address manager: that is where it is overwritten,
with L1's lock held, before the address can be given to anybody else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, TypeAlias

from kvstore.tier_seal import SEAL_BYTES, is_blank

Key: TypeAlias = Any
"""LMCache's name of an object (``ObjectKey``); ``cache_salt`` is our salt."""
L1Manager: TypeAlias = Any
MemoryObject: TypeAlias = Any
Layout: TypeAlias = Any


class L1Memory:
    """The memory under one of LMCache's L1 managers. Any thread may call any method."""

    def __init__(self, manager: L1Manager) -> None:
        self._manager = manager
        self._pool = manager._memory_manager._allocator
        self._addresses = self._pool.pin_allocator.address_manager
        self._base: int = self._pool.buffer.data_ptr()
        self._free = self._addresses.free
        self._addresses.free = self._overwrite_and_free

    @property
    def capacity(self) -> int:
        """Bytes in all."""
        return int(self._addresses.get_heap_size())

    @property
    def free(self) -> int:
        """Bytes that nobody has."""
        return int(self._addresses.get_free_size())

    @property
    def write_seconds(self) -> float:
        """So long a writer may take."""
        return float(self._manager.config.write_ttl_seconds)

    def size_of(self, layout: Layout) -> int:
        """Bytes that an object of this layout takes, with what it is aligned to."""
        parts = zip(layout.shapes, layout.dtypes, strict=True)
        size = sum(shape.numel() * dtype.itemsize for shape, dtype in parts)
        return int(self._addresses.compute_aligned_size(size))

    def keys(self) -> list[Key]:
        """Of all objects that are there or being written."""
        with self._manager._lock:
            return [*self._manager._objects, *self._manager._staging]

    def holds(self, key: Key) -> bool:
        """Whether there is such an object, or one being written."""
        return key in self._manager._objects or key in self._manager._staging

    def is_blank(self, key: Key, writer: str) -> bool:
        """Whether ``writer`` has reserved memory for this object and not sealed what is in it."""
        state = self._manager._staging.get(key, {}).get(writer)
        if state is None:
            return False
        slot = state.memory_obj.raw_data[: state.memory_obj.get_size()]
        return is_blank(slot.numpy())

    def overwrite(self, keys: Iterable[Key]) -> None:
        """Overwrites these objects where they lie, also under those who read or write them."""
        with self._manager._lock:
            for key in keys:
                states = [*self._manager._staging.get(key, {}).values()]
                if key in self._manager._objects:
                    states.append(self._manager._objects[key])
                for state in states:
                    self._overwrite(state.memory_obj)

    def _overwrite(self, found: MemoryObject) -> None:
        """The seal goes first: a reader must not take what is half overwritten for broken."""
        start = self._base + found.meta.address
        ctypes.memset(start + found.get_size() - SEAL_BYTES, 0, SEAL_BYTES)
        ctypes.memset(start, 0, found.get_physical_size())

    def _overwrite_and_free(self, address: int, size: int) -> None:
        # What is destroyed after the pool has no memory any more.
        if not self._pool._unregistered:
            ctypes.memset(self._base + address, 0, size)
        self._free(address, size)
