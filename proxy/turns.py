"""Whose turn it is among tenants: each that waits has an equal share of the workers. Pure.

Start-time fair queueing (Goyal, Vin and Cheng 1996), with time itself as the virtual clock: what a
tenant asks for beyond its share comes later by as much, and a tenant alone has all of it.
"""

from __future__ import annotations

from collections import Counter


class Turns:
    """For one thread; ``now`` is any monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._next: dict[str, float] = {}

    def next(self, tenant: str, seconds: float, now: float) -> float:
        """When it is the turn of one more of ``tenant``'s, which takes all workers ``seconds``."""
        self._waiting[tenant] += 1
        turn = max(now, self._next.get(tenant, now))
        self._next[tenant] = turn + seconds * len(self._waiting)
        return turn

    def left(self, tenant: str) -> None:
        """One of the tenant's waits no more."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            del self._next[tenant]
