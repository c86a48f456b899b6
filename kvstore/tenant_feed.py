"""A proxy's view of what holds for tenants at workers, and of what these hold of them. Pure.

What a worker has not confirmed is owed to it, and told again until it has. What workers say counts
as well: another proxy may have flushed a tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from kvstore.messages import Holding, Standing, Tenancy, TenantMessage, Tier, Usage, Wiped
from kvstore.standings import Standings, parts

MAX_WIPED = 4096
"""Reports of overwritten memory that are remembered, of all workers; the oldest go first."""

Raised = Callable[[str, int], None]
"""A tenant's tag and its epoch from now on, which somebody else has raised."""


@dataclass
class Memory:
    """What a worker holds of tenants in one tier, of ``capacity`` bytes."""

    capacity: int = 0
    holdings: Mapping[str, Holding] = field(default_factory=dict)


@dataclass
class _Worker:
    generation: str
    unconfirmed: set[str]
    epochs: dict[str, int] = field(default_factory=dict)
    coming: dict[Tier, list[Usage]] = field(default_factory=dict)


class TenantFeed:
    """For one event loop; ``raised`` is called when a worker knows of a later epoch."""

    def __init__(self, raised: Raised = lambda _tag, _epoch: None) -> None:
        self._raised = raised
        self._standings = Standings()
        self._workers: dict[str, _Worker] = {}
        self._memory: dict[tuple[str, Tier], Memory] = {}
        self._wiped: dict[tuple[str, Tier, str], Wiped] = {}

    @property
    def memory(self) -> Mapping[tuple[str, Tier], Memory]:
        """What was told last, by worker and tier."""
        return self._memory

    def say(self, standings: Iterable[Standing]) -> None:
        """These hold from now on. Raises WireError for one tenant too many."""
        changed = {standing.tag for standing in self._standings.take(standings)}
        for worker in self._workers.values():
            worker.unconfirmed |= changed

    def met(self, worker: str, generation: str) -> None:
        """A worker has announced itself; one that has been started anew is told everything."""
        known = self._workers.get(worker)
        if known is None or known.generation != generation:
            owed = {standing.tag for standing in self._standings}
            self._workers[worker] = _Worker(generation, owed)

    def forget(self, workers: Iterable[str]) -> None:
        """These are gone, with all that they held."""
        for worker in workers:
            self._workers.pop(worker, None)
            for place in [place for place in self._memory if place[0] == worker]:
                del self._memory[place]

    def owed(self, worker: str) -> list[Tenancy]:
        """What that worker is still to be told."""
        known = self._workers.get(worker)
        if known is None or not known.unconfirmed:
            return []
        standings = [self._standings.of(tag) for tag in sorted(known.unconfirmed)]
        return [Tenancy("", part) for part in parts(standings)]

    def hear(self, message: TenantMessage) -> None:
        """Takes in what a worker says. Raises WireError for one tenant too many."""
        known = self._workers.get(message.worker)
        match message:
            case Tenancy():
                self._take(known, message)
            case Usage() if known is not None:
                self._count(known, message)
            case Wiped():
                place = message.worker, message.tier, message.tag
                self._wiped.pop(place, None)
                self._wiped[place] = message
                while len(self._wiped) > MAX_WIPED:
                    del self._wiped[next(iter(self._wiped))]

    def confirmed(self, tag: str, epoch: int) -> set[str]:
        """Workers where nothing of that tenant from before ``epoch`` is used any more."""
        return {
            worker for worker, known in self._workers.items() if known.epochs.get(tag, -1) >= epoch
        }

    def wiped(self, tag: str, epoch: int) -> list[Wiped]:
        """Where all that was held of it from before ``epoch`` has been overwritten."""
        return [
            wiped
            for (_, _, whose), wiped in self._wiped.items()
            if whose == tag and wiped.epoch >= epoch
        ]

    def _take(self, known: _Worker | None, told: Tenancy) -> None:
        for standing in told.standings:
            ours = self._standings.of(standing.tag)
            if known is not None:
                known.epochs[standing.tag] = standing.epoch
                if standing.epoch >= ours.epoch:
                    known.unconfirmed.discard(standing.tag)
            if standing.epoch > ours.epoch:
                # The shares are the file's to say, and this proxy has read it.
                self.say([msgspec.structs.replace(ours, epoch=standing.epoch)])
                self._raised(standing.tag, standing.epoch)

    def _count(self, known: _Worker, told: Usage) -> None:
        coming = known.coming.setdefault(told.tier, [])
        if told.part == 0:
            coming.clear()
        elif told.part != len(coming):
            return  # one was lost: the next second brings all of them again
        coming.append(told)
        if told.part + 1 == told.parts:
            holdings = {one.tag: one for part in coming for one in part.holdings}
            self._memory[told.worker, told.tier] = Memory(told.capacity, holdings)
            coming.clear()
