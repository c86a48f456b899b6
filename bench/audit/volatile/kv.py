"""Bytes that are certainly KV of the canary: what changed in the DRAM tier's memory meanwhile."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash

from bench.audit.volatile.canary import KV_BYTES

TIER = "lmcache_l1_pool_"
"""How LMCache's shared memory begins, by name."""

WINDOW = 64 << 10
RUNS = 8
_VARIED = 24
"""Different bytes in a run that is not by chance somewhere else as well."""


class TierMemory:
    """The DRAM tier's memory as it was when this was made."""

    def __init__(self, segments: Iterable[str]) -> None:
        names = [path for path in segments if Path(path).name.startswith(TIER)]
        self._before: Mapping[str, list[int]] = {path: _digests(path) for path in names}

    @property
    def there(self) -> bool:
        """There is such memory."""
        return bool(self._before)

    def changed_runs(self) -> list[bytes]:
        """Runs of bytes out of what has changed since, spread over all of it."""
        found: list[bytes] = []
        for path, before in self._before.items():
            now = _digests(path)
            windows = [at for at, digest in enumerate(now) if before[at] != digest]
            for window in windows[:: max(1, len(windows) // RUNS)][:RUNS]:
                found += _varied(path, window)
        return found[:RUNS]


def _digests(path: str) -> list[int]:
    with _view(path) as memory:
        size = len(memory)
        return [
            xxhash.xxh3_64_intdigest(memory[at : min(size, at + WINDOW)])
            for at in range(0, size, WINDOW)
        ]


def _varied(path: str, window: int) -> list[bytes]:
    """The first run of many different bytes in a window, if there is one."""
    with _view(path) as memory:
        content = memory[window * WINDOW : (window + 1) * WINDOW]
    for at in range(WINDOW // 2, len(content) - KV_BYTES, KV_BYTES):
        run = content[at : at + KV_BYTES]
        if len(set(run)) >= _VARIED:
            return [run]
    return []


def _view(path: str) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
