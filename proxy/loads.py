"""How many requests this proxy has in flight on each worker, counted from the moment of sending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Loads:
    """Requests in flight by worker name. One event loop."""

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
