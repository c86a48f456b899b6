"""How much this proxy does at once: in all, which is bounded, and on each worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from kvstore.engagements import Engagements
from kvstore.messages import Announce
from proxy import faults


class Peers(Protocol):
    """Other proxies in front of the same workers (``kvstore.feed``)."""

    @property
    def engagements(self) -> Engagements:
        """What they have workers busy with."""
        ...

    def tell(self, worker: Announce, prompts: int, seconds: float) -> None:
        """They are to know what this proxy has ``worker`` busy with."""
        ...


class Loads:
    """Requests in flight by worker name, from the moment of sending. One event loop."""

    def __init__(self, peers: Peers) -> None:
        self._counts: Counter[str] = Counter()
        self._peers = peers

    @contextmanager
    def counted(self, worker: Announce) -> Iterator[None]:
        """Counts one request on ``worker`` for as long as it is entered."""
        name = worker.worker
        self._counts[name] += 1
        self._tell(worker)
        try:
            yield
        finally:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]
            self._tell(worker)

    @property
    def counts(self) -> Mapping[str, int]:
        """As they are now; absent means none."""
        return self._counts

    def elsewhere(self) -> Iterator[tuple[tuple[str, str], int]]:
        """Those of other proxies, by worker and generation; one may come more than once."""
        return ((life, engagement.prompts) for life, engagement in self._peers.engagements)

    def _tell(self, worker: Announce) -> None:
        if worker.role == "decode":
            self._peers.tell(worker, self._counts.get(worker.worker, 0), 0.0)

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
