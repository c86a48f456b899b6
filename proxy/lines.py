"""Who waits, tenant by tenant, and in which order they are looked at. Pure.

Within a tenant whoever has the least ``order`` (its arrival, and something for its size) comes
first. Between tenants each is paced: of all workers, K tenants that wait have a K-th each, so a
tenant's next prompt stands behind its last one by K / workers times what that one takes to compute.
One that floods thereby stands behind its own flood, and one that asks for less than its share
never behind anybody's. What nobody else wants a tenant may have, and is not made to pay for later.

The pacing is Virtual Clock's (Zhang 1990), counted from the last giving and not from the first,
which is what keeps it from punishing the use of idle time.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Standing(Protocol):
    """One that waits ``since`` then. ``least``: seconds that it will take a worker, at least."""

    @property
    def key(self) -> int: ...
    @property
    def tenant(self) -> str: ...
    @property
    def since(self) -> float: ...
    @property
    def order(self) -> float: ...
    @property
    def least(self) -> float: ...


One = TypeVar("One", bound=Standing)


class Lines(Generic[One]):
    """For one thread. Tenants are as many as there ever were: few."""

    def __init__(self) -> None:
        self._lines: defaultdict[str, list[One]] = defaultdict(list)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._not_before: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[One]:
        return itertools.chain.from_iterable(self._lines.values())

    def of(self, tenant: str) -> int:
        """How many of ``tenant`` wait."""
        return len(self._lines[tenant]) if tenant in self._lines else 0

    def enter(self, one: One) -> None:
        """It waits from now on."""
        bisect.insort(self._lines[one.tenant], one, key=_place)
        self._seconds[one.tenant] += one.least

    def leave(self, one: One) -> None:
        """It waits no more. Idempotent."""
        line = self._lines.get(one.tenant, [])
        at = bisect.bisect_left(line, _place(one), key=_place)
        if at == len(line) or line[at] is not one:
            return
        del line[at]
        self._seconds[one.tenant] -= one.least
        if not line:
            del self._lines[one.tenant], self._seconds[one.tenant]

    def given(self, one: One, workers: int, now: float) -> None:
        """A worker was given it: its tenant's next comes one share of time later."""
        self._not_before[one.tenant] = now + one.least * self._pace(workers)
        self.leave(one)

    def first(self, most: int, workers: int) -> list[One]:
        """Up to ``most`` that wait, in the order in which they are to be looked at."""
        if len(self._lines) == 1:
            (line,) = self._lines.values()
            return line[:most]
        pace = self._pace(workers)
        paced = (self._paced(tenant, line, pace) for tenant, line in self._lines.items())
        return [one for _, _, one in itertools.islice(heapq.merge(*paced), most)]

    def before(self, tenant: str) -> float:
        """Seconds of computing that come before one more prompt of ``tenant``.

        What its own tenant has waiting, and others by their shares; or everything, if that is less.
        """
        own = self._seconds.get(tenant, 0.0)
        competing = len(self._lines) + (tenant not in self._lines)
        return min(sum(self._seconds.values()), own * competing)

    def _paced(self, tenant: str, line: list[One], pace: float) -> Iterator[tuple[float, int, One]]:
        start = place = self._not_before.get(tenant, -math.inf)
        for one in line:
            start = max(start, one.since)
            place = max(place, start + one.order - one.since)
            yield place, one.key, one
            start += one.least * pace

    def _pace(self, workers: int) -> float:
        return len(self._lines) / max(1, workers)


def _place(one: Standing) -> tuple[float, int]:
    """In its line."""
    return one.order, one.key
