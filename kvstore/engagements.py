"""What other proxies have workers busy with, as their relays pass it on. Pure.

A proxy knows what it gave itself. Where others steer to the same workers each tells the relay of a
worker what it has there, whenever that changes, and the relay tells the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvstore.messages import Engaged

MAX_PROXIES = 64
"""Proxies that are known of for one worker: as many as its relay serves."""

LEASE_SECONDS = 4.0
"""What has not been told again for so long is over; it is told every second."""


@dataclass(frozen=True)
class Engagement:
    """``prompts`` of one other proxy, which should be computed by ``until``; told ``at``."""

    prompts: int
    until: float
    at: float

    def work(self, now: float) -> float:
        """Seconds that the worker will still take for them; who is late takes as long again."""
        return abs(self.until - now)


class Engagements:
    """For one thread; ``now`` is any monotonic clock, in seconds.

    ``given``: seconds of work that others have given workers so far, by worker and generation.
    """

    def __init__(self) -> None:
        self.given: dict[tuple[str, str], float] = {}
        self._known: dict[tuple[str, str], dict[str, Engagement]] = {}

    def apply(self, message: Engaged, now: float) -> None:
        """Takes in what a relay has passed on; that of an older generation is thereby forgotten."""
        life = message.worker, message.generation
        if life not in self.given:
            self.forget([message.worker])
        known = self._known.setdefault(life, {})
        before = known.pop(message.proxy, None)
        more = before is None or message.prompts > before.prompts
        left = 0.0 if before is None else max(0.0, before.until - now)
        new = max(0.0, message.seconds - left) if more else 0.0
        self.given[life] = self.given.get(life, 0.0) + new
        if message.prompts and len(known) < MAX_PROXIES:
            known[message.proxy] = Engagement(message.prompts, now + message.seconds, now)
        if not known:
            del self._known[life]

    def expire(self, now: float) -> None:
        """Forgets what has not been told again."""
        for life, known in list(self._known.items()):
            for proxy in [p for p, one in known.items() if now - one.at > LEASE_SECONDS]:
                del known[proxy]
            if not known:
                del self._known[life]

    def forget(self, workers: Iterable[str]) -> None:
        """These workers are gone."""
        gone = set(workers)
        for life in [life for life in self.given if life[0] in gone]:
            del self.given[life]
            self._known.pop(life, None)

    def __iter__(self) -> Iterator[tuple[tuple[str, str], Engagement]]:
        """All of them, by worker and generation."""
        return ((life, one) for life, known in self._known.items() for one in known.values())

    def __len__(self) -> int:
        return len(self._known)
