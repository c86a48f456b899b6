"""How much this proxy does at once: in all, which is bounded, and on each worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from proxy import faults


class Loads:
    """Requests in flight by worker name, from the moment of sending. One event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @contextmanager
    def counted(self, worker: str) -> Iterator[None]:
        """Counts one request on ``worker`` for as long as it is entered."""
        self._counts[worker] += 1
        try:
            yield
        finally:
            self._counts[worker] -= 1
            if not self._counts[worker]:
                del self._counts[worker]

    def snapshot(self) -> Mapping[str, int]:
        """A copy; absent means none."""
        return dict(self._counts)

    def check(self) -> None:
        """Invariant when idle: nothing is counted. Raises AssertionError."""
        assert not self._counts, f"requests still counted: {dict(self._counts)}"


class Places:
    """A bounded number of places; who finds none free is turned away at once. One event loop."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    @contextmanager
    def one(self) -> Iterator[None]:
        """Occupies a place while entered. Raises ApiError (503) if none is free."""
        if self._free < 1:
            raise faults.overloaded("Too many requests at once.")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
