"""Whose objects the DRAM tier holds, whose have to go, what of a flush is still to be done. Pure.

::

    put ─▶ on its tenant's shelf ── chosen to go ─▶ leaving ── gone
                  ▲                      ▲   └── was in use, and may stay ──▶ (back on the shelf)
                  │                      └── its tenant's epoch has risen
                  └── touched

An object whose epoch is over leaves until it is gone: nobody is given it meanwhile. A flush is done
when each of its objects is gone or has been overwritten where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from kvstore.holdings import usage
from kvstore.messages import Holding, Standing, Usage, Wiped
from kvstore.salts import Owner, owner
from kvstore.shelves import Shelves
from kvstore.standings import Standings

K = TypeVar("K", bound=Hashable)

SPEAKER = "dram"
"""What the tier's server calls itself where a worker would say its name."""

_LOOKED_AT = 4096
"""Of a tenant's oldest objects, so many are looked at for one that is not in use."""


@dataclass(slots=True)
class _Leaving:
    whose: Owner | None
    size: int
    overwritten: bool = False


@dataclass(frozen=True, slots=True)
class _Flush:
    epoch: int
    begun: float
    size: int


class TierTenants(Generic[K]):
    """Objects by key, each with the salt it is stored under and its size. Its owner locks it.

    ``capacity`` is the memory's, in bytes; so are sizes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._standings = Standings()
        self._shelves: Shelves[K] = Shelves(capacity)
        self._owners: dict[K, Owner] = {}
        self._leaving: dict[K, _Leaving] = {}
        self._flushes: dict[str, _Flush] = {}
        self._told_anew: set[str] = set()

    def __contains__(self, key: K) -> bool:
        return key in self._shelves

    # -- what holds

    def allows(self, salt: str) -> bool:
        """Whether KV of this salt may be kept and used."""
        return self._may_stay(owner(salt))

    def stand(self, told: Iterable[Standing], now: float) -> None:
        """Takes in what holds from now on; a tenant whose epoch rises is flushed.

        Raises WireError, having taken in what came before it, for one tenant too many.
        """
        for standing in told:
            before = self._standings.of(standing.tag).epoch
            for news in self._standings.take([standing]):
                self._shelves.share(news.tag, news.floor, news.limit)
                self._told_anew.add(news.tag)
                if news.epoch > before:
                    self._flush(news, now)

    def flushed(self) -> list[Standing]:
        """What holds for those of whom something was flushed, ever since."""
        known = (standing for part in self._standings.parts() for standing in part)
        return [standing for standing in known if standing.epoch]

    def _flush(self, standing: Standing, now: float) -> None:
        over = [
            key for key in self._shelves.of(standing.tag) if not self._may_stay(self._owners[key])
        ]
        size = sum(map(self._depart, over))
        before = self._flushes.get(standing.tag)
        if before is not None:
            size += before.size
        self._flushes[standing.tag] = _Flush(standing.epoch, now, size)

    # -- what is there

    def put(self, salt: str, key: K, size: int) -> None:
        """There is such an object from now on, the newest of its tenant's."""
        whose = owner(salt)
        if whose is None or not self._may_stay(whose):
            self.gone([key])
            self._leaving[key] = _Leaving(whose, size)
            return
        self._leaving.pop(key, None)
        self._owners[key] = whose
        self._shelves.put(whose.tag, key, size)

    def touch(self, keys: Iterable[K]) -> None:
        """These are their tenants' newest, the last of them more so than the first."""
        for key in keys:
            self._shelves.touch(key)

    def gone(self, keys: Iterable[K]) -> None:
        """These are there no more."""
        for key in keys:
            self._leaving.pop(key, None)
            self._shelves.remove(key)
            self._owners.pop(key, None)

    def left(self, keys: Iterable[K]) -> None:
        """Of what was chosen to go, these were there no more."""
        for key in keys:
            self._leaving.pop(key, None)

    def size(self, key: K) -> int:
        """That of an object, on a shelf or leaving; 0 where there is none."""
        if key in self._leaving:
            return self._leaving[key].size
        return self._shelves.size(key) if key in self._shelves else 0

    def usage(self) -> list[Usage]:
        """What is kept of each tenant of whom anything is, in as many messages as it takes."""
        held = [Holding(tag, kept) for tag, kept in self._shelves.kept.items()]
        return usage(SPEAKER, "dram", self.capacity, held)

    # -- what has to go; nothing that is chosen is chosen again until it ``stays``

    def limit(self, tag: str) -> int:
        """More than that the tenant never has."""
        return self._shelves.limit(tag)

    def room(self, tag: str) -> int:
        """How much more the tenant may have."""
        return self.limit(tag) - self._shelves.kept_of(tag)

    def outgrown(self, tag: str, more: int, free: Callable[[K], bool]) -> list[K]:
        """What has to go so that ``more`` fits within the tenant's limit, as far as it is ``free``.

        ``free`` tells of a key whether nobody is using what it names.
        """
        chosen: list[K] = []
        while self.room(tag) < more and (key := self._oldest(tag, free)) is not None:
            self._depart(key)
            chosen.append(key)
        return chosen

    def outgrowing(self) -> list[str]:
        """Tenants above their limit of whom something else was told since the last call."""
        told, self._told_anew = self._told_anew, set()
        return [tag for tag in told if self._shelves.excess(tag)]

    def borrowed(
        self, size: int, free: Callable[[K], bool], asker: str = "", more: int = 0
    ) -> list[K]:
        """What has to go so that ``size`` bytes become free, as far as it is ``free``.

        From whoever has most above its floor, where the ``asker`` counts as having ``more``
        already: that much it wants to store. What it has below its floor goes where nobody else has
        anything that can.
        """
        chosen: list[K] = []
        stuck: set[str] = set()
        while size > 0:
            tag = self._giver(asker, more, stuck)
            key = self._oldest(tag, free)
            if key is not None:
                size -= self._depart(key)
                chosen.append(key)
            elif not tag:
                break
            else:
                stuck.add(tag)
        return chosen

    def _giver(self, asker: str, more: int, stuck: set[str]) -> str:
        """Who gives next, of those who have something that can go; "": nobody."""
        most = self._shelves.borrower({asker, *stuck})
        if not asker or asker in stuck:
            return most or ""
        owed = self._shelves.borrowed(most) if most else 0
        return most if most and owed > self._shelves.borrowed(asker, more) else asker

    def stay(self, key: K) -> None:
        """What was chosen is in use: it is back, unless its epoch is over."""
        found = self._leaving.get(key)
        if found is not None and found.whose is not None and self._may_stay(found.whose):
            del self._leaving[key]
            self._owners[key] = found.whose
            self._shelves.put(found.whose.tag, key, found.size)

    def _oldest(self, tag: str, free: Callable[[K], bool]) -> K | None:
        looked_at = islice(self._shelves.of(tag), _LOOKED_AT)
        return next((key for key in looked_at if free(key)), None)

    def _depart(self, key: K) -> int:
        size = self._shelves.size(key)
        self._shelves.remove(key)
        self._leaving[key] = _Leaving(self._owners.pop(key), size)
        return size

    # -- what is flushed

    def over(self) -> list[K]:
        """What has to go since nobody may use it."""
        return [key for key, found in self._leaving.items() if not self._may_stay(found.whose)]

    def unwiped(self, keys: Iterable[K]) -> list[K]:
        """Those that are leaving and not known to have been overwritten."""
        return [key for key in keys if key in self._leaving and not self._leaving[key].overwritten]

    def overwritten(self, keys: Iterable[K]) -> None:
        """Nothing is left of what was in these, and nobody will write there again."""
        for key in keys:
            if key in self._leaving:
                self._leaving[key].overwritten = True

    def wiped(self, now: float) -> list[Wiped]:
        """The flushes that are done, each once."""
        if not self._flushes:
            return []
        awaited = {
            found.whose.tag
            for found in self._leaving.values()
            if found.whose and not found.overwritten and not self._may_stay(found.whose)
        }
        done = [tag for tag in self._flushes if tag not in awaited]
        flushes = [(tag, self._flushes.pop(tag)) for tag in done]
        return [
            Wiped(SPEAKER, "dram", tag, flush.epoch, flush.size, now - flush.begun)
            for tag, flush in flushes
        ]

    def _may_stay(self, whose: Owner | None) -> bool:
        if whose is None or not whose.kept:
            return False
        return whose.epoch >= self._standings.of(whose.tag).epoch
