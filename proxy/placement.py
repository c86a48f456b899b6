"""Which waiting prompts go to which workers now. Pure: a function of one moment's figures.

Prompts are looked at in their order. Each is meant for the worker where it costs least: the work
that lies before it there, plus the price of computing it there, because computing what another
worker holds takes capacity, and cache, from all. Where that worker has no room the prompt stays,
and counts there as work that lies before the next ones: later it may be meant for another worker,
but nobody takes its place by accident. One that leans to a worker goes there where that costs
hardly more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from proxy.hints import Lean

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Placement(NamedTuple):
    """The prompt of ``row`` goes to the worker at ``position``."""

    row: int
    position: int


@dataclass(frozen=True)
class Workers:
    """What is known of workers, by position.

    ``work``: seconds that it will still compute what it was given, ``given`` prompts. ``against``:
    what else speaks against it, in seconds, because it computed more than others of late.
    """

    work: Floats
    given: Counts
    against: Floats


@dataclass(frozen=True)
class Terms:
    """``price``: what a second of computing is worth in seconds of waiting. ``lead``: seconds of
    work that a worker may have left when it is given more; ``most``: prompts that it is given at
    most. ``patience``: seconds that a prompt may wait longer where it is held than anywhere else.
    """

    price: float
    lead: float
    most: int
    patience: float

    def room(self, workers: Workers) -> npt.NDArray[np.bool_]:
        """Who may be given more now."""
        room: npt.NDArray[np.bool_] = (workers.work <= self.lead) & (workers.given < self.most)
        return room


def place(
    costs: Iterable[Floats],
    workers: Workers,
    terms: Terms,
    leanings: Iterable[Lean | None] = itertools.repeat(None),
) -> Sequence[Placement]:
    """Who goes where now, until nobody has room.

    ``costs``: for each prompt in its order the seconds that computing it takes each worker,
    infinitely many where it cannot;
    ``leanings``: where each had rather go, if anywhere.
    """
    room = terms.room(workers)
    left, placed = int(room.sum()), []
    work, given = workers.work.copy(), workers.given.copy()
    before = workers.work + workers.against
    for row, (cost, lean) in enumerate(zip(costs, leanings, strict=False)):
        fair = before <= float((before + cost).min()) + terms.patience
        total = np.where(fair, before + terms.price * cost, np.inf)
        if lean is not None:
            total[lean.position] -= lean.seconds
        position = int(np.argmin(total))
        if not np.isfinite(total[position]):
            continue  # nobody can compute it
        before[position] += cost[position]
        if not room[position]:
            continue
        placed.append(Placement(row, position))
        work[position] += cost[position]
        given[position] += 1
        room[position] = work[position] <= terms.lead and given[position] < terms.most
        left -= not room[position]
        if not left:
            break
    return placed
