"""What prefill workers were given to compute, and what they computed of late. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kvstore.messages import Announce, ServedAdapter
from proxy import hints
from proxy.hints import Lean, Numbers
from proxy.promised import Life

HINT_WORTH = 0.25
"""Of the time that computing a prompt takes: so much later it may be done where its hint belongs.
Less than one prompt that is before it there, more than what workers usually differ by."""

_MOST_ADAPTERS = 1024
"""Remembered at a time; then all are forgotten, and looked for anew."""

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """A prompt that ``worker`` was given, thought to hold ``held`` tokens of it; the rest takes
    ``seconds``, after ``work`` seconds for others. ``loads`` of the held ones lie only in DRAM;
    ``loading`` them is a part of the seconds.
    """

    key: int
    worker: Announce
    held: int
    seconds: float
    loads: int = 0
    loading: float = 0.0
    work: float = 0.0


@dataclass
class Load:
    """A worker's prompts, in the order of their giving. ``until``: when all of them, ``due``: when
    the first of them should have been computed.
    """

    given: dict[int, Given] = field(default_factory=dict)
    until: float = 0.0
    due: float = 0.0

    def work(self, now: float) -> float:
        """Seconds until it has done; who is late is expected to take as long again."""
        if not self.given:
            return 0.0
        return max(self.until - now, 0.0) + max(now - self.due, 0.0)

    def give(self, given: Given, now: float) -> None:
        """One more."""
        self.until = max(now, self.until) + given.seconds
        if not self.given:
            self.due = self.until
        self.given[given.key] = given

    def ended(self, key: int, now: float) -> bool:
        """Whether it had that one. Those left begin now: one after the other, as far as known."""
        if self.given.pop(key, None) is None:
            return False
        left = [one.seconds for one in self.given.values()]
        self.until, self.due = now + sum(left), now + (left[0] if left else 0.0)
        return True


class Roster:
    """A layout's prefill workers, by position. ``lately``: seconds that each computed, faded.

    ``slowness``: how much longer than others each takes.
    """

    def __init__(self, workers: Sequence[Announce], slots: npt.NDArray[np.intp]) -> None:
        self.workers = list(workers)
        self.slots = slots
        self.position = {life(worker): at for at, worker in enumerate(workers)}
        self.lately = np.zeros(len(workers))
        self.slowness = np.ones(len(workers))
        self._heard: dict[Life, float] = {}
        self._all = np.ones(len(workers), dtype=bool)
        self._serving: dict[ServedAdapter, npt.NDArray[np.bool_]] = {}

    def serving(self, adapter: ServedAdapter | None) -> npt.NDArray[np.bool_]:
        """Who serves it; all of them without one."""
        if adapter is None:
            return self._all
        if adapter not in self._serving:
            if len(self._serving) >= _MOST_ADAPTERS:
                self._serving.clear()
            serve = [adapter in worker.adapters for worker in self.workers]
            self._serving[adapter] = np.array(serve, dtype=bool)
        return self._serving[adapter]

    def renew(self, workers: Sequence[Announce]) -> None:
        """The same workers have announced themselves anew."""
        self.workers = list(workers)
        self._serving.clear()

    def take_over(self, other: Roster) -> None:
        """What ``other`` knew of the same workers; a new one counts as the least busy of them."""
        if other.workers:
            self.lately[:] = other.lately.min()
        for before, worker in enumerate(other.workers):
            at = self.position.get(life(worker))
            if at is not None:
                self.lately[at] = other.lately[before]
                self.slowness[at] = other.slowness[before]
        self._heard = {one: told for one, told in other._heard.items() if one in self.position}

    def hear(self, given: Mapping[Life, float]) -> None:
        """What other proxies have given counts as what each computed of late."""
        for one, seconds in given.items():
            at = self.position.get(one)
            if at is not None:
                self.lately[at] += max(0.0, seconds - self._heard.get(one, seconds))
                self._heard[one] = seconds

    def lean(self, hint: int | None, held: Counts, seconds: Floats) -> Lean | None:
        """Where a prompt with ``hint`` had rather go; None where another worker holds more of it,
        or that one does not serve its adapter.

        ``held`` tokens of it, and the ``seconds`` that the rest takes: of each worker.
        """
        if hint is None:
            return None
        at = hints.meant(hint, self._numbers)
        if held[at] < held.max() or not np.isfinite(seconds[at]):
            return None
        return Lean(at, HINT_WORTH * float(seconds[at]))

    @cached_property
    def _numbers(self) -> Numbers:
        return hints.numbers(worker.worker for worker in self.workers)


def life(worker: Announce) -> Life:
    """What a worker is known by: it begins anew with every generation."""
    return worker.worker, worker.generation
