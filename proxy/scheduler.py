"""Requests that wait for a prefill worker, and the moment when one is theirs. No I/O, no clock.

A worker is given its next prompt just before it has done with the one before; everything else waits
here, where a better choice stays possible until the last moment. One scheduler serves one model's
workers.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.curves import PrefillCurve
from kvstore.index import Directory
from kvstore.messages import Announce
from proxy.placement import Counts, Floats, Terms, Workers, place
from proxy.promised import Promised
from proxy.turns import Turns

_USUAL_SHARE = 0.01
"""Of a new prompt in what is usual."""
_LEAST_AGE = 25.0
"""From so many usual prompts on, the part of the time that workers were busy means something."""
_MOST_BUSY = 0.9


@dataclass(frozen=True)
class Policy:
    """How prompts are weighed against each other.

    ``lead`` (seconds) and ``most``: see :class:`proxy.placement.Terms`; ``patience`` too, but here
    it is in prompts of usual length, as is ``lately``. A second of computing is worth one of
    waiting where workers are idle; where they are busy for a part r of the time, ``crowded`` times
    r / (1 - r) more: that is how many others it delays. ``uneven``: what speaks against a worker
    for each second that it computed more than the least busy one ``lately``. ``size``: seconds by
    which a prompt stands behind later ones for each second that it takes, which count up to
    ``size_most`` times the usual. ``window``: prompts looked at. ``stale``: seconds after which the
    workers' holdings are looked up again for one that waits. ``lingers``: seconds after its end for
    which a prompt counts as held though the feed does not tell of it yet.
    """

    crowded: float = 2.5
    lead: float = 0.02
    most: int = 8
    patience: float = 10.0
    uneven: float = 0.02
    lately: float = 750.0
    size: float = 3.0
    size_most: float = 1.25
    window: int = 64
    stale: float = 0.25
    lingers: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """``tokens`` tokens for ``tenant``; ``names`` of its whole blocks of ``block_size`` each."""

    tenant: str
    tokens: int
    block_size: int
    names: Sequence[bytes]


@dataclass(eq=False)
class Waiting:
    """A prompt in the queue. ``order``: who has the least is looked at first. ``held``: tokens, and
    ``seconds`` to compute the rest, by the worker's position in the fleet of that ``version``.
    """

    key: int
    prompt: Prompt
    chain: bytes
    order: float
    held: Counts
    seconds: Floats
    looked_up: float
    version: int


@dataclass(frozen=True)
class Given:
    """A prompt that ``worker`` was given, thought to hold ``held`` tokens of it; the rest takes
    ``seconds``.
    """

    key: int
    worker: Announce
    held: int
    seconds: float


class _Fleet:
    """Workers by position, and what each was given.

    ``until``: when it will have computed that; ``lately``: seconds it computed, faded.
    """

    def __init__(self, workers: Sequence[Announce], slots: npt.NDArray[np.intp]) -> None:
        self.workers = list(workers)
        self.slots = slots
        self.position = {worker.worker: at for at, worker in enumerate(workers)}
        self.until = np.zeros(len(workers))
        self.lately = np.zeros(len(workers))
        self.given: list[dict[int, Given]] = [{} for _ in workers]

    def where(self, worker: Announce) -> int | None:
        """Its position, if it still is the same one."""
        at = self.position.get(worker.worker)
        return at if at is not None and _same(self.workers[at], worker) else None

    def take_over(self, other: _Fleet) -> list[Given]:
        """What ``other`` knew of the same workers; what those had been given that are gone."""
        self.lately[:] = other.lately.min(initial=np.inf) if other.workers else 0.0
        lost: list[Given] = []
        for before, worker in enumerate(other.workers):
            at = self.where(worker)
            if at is None:
                lost += other.given[before].values()
                continue
            self.until[at], self.lately[at] = other.until[before], other.lately[before]
            self.given[at] = other.given[before]
        return lost


class Scheduler:
    """For one thread; ``now`` is any monotonic clock, in seconds."""

    def __init__(
        self, directory: Directory, curve: PrefillCurve, policy: Policy | None = None
    ) -> None:
        self._directory = directory
        self._curve = curve
        self._policy = policy or Policy()
        self._waiting: dict[int, Waiting] = {}
        self._turns = Turns()
        self._keys = itertools.count()
        self._promised = Promised()
        self._over: deque[tuple[float, int]] = deque()
        self._fleet = _Fleet([], np.empty(0, dtype=np.intp))
        self._version = 0
        self._faded_at = -math.inf
        self._began = math.inf
        self._usual = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, prompt: Prompt, now: float) -> Waiting:
        """``prompt`` waits from ``now`` on."""
        self._update_fleet()
        chain = b"".join(prompt.names)
        held, seconds = self._look_up(prompt, chain)
        nothing_held = self._curve.seconds(float(prompt.tokens), 0.0)
        least = min(nothing_held, float(seconds.min(initial=math.inf)))
        self._usual += _USUAL_SHARE * (least - self._usual) if self._usual else least
        policy = self._policy
        turn = self._turns.next(prompt.tenant, least / max(1, len(self._fleet.workers)), now)
        order = turn + policy.size * min(least, policy.size_most * self._usual)
        key = next(self._keys)
        waiting = Waiting(key, prompt, chain, order, held, seconds, now, self._version)
        self._waiting[key] = waiting
        return waiting

    def withdraw(self, waiting: Waiting) -> None:
        """It waits no more."""
        if self._waiting.pop(waiting.key, None) is not None:
            self._turns.left(waiting.prompt.tenant)

    def ended(self, given: Given, now: float, *, computed: bool) -> None:
        """The worker has ``computed`` what it was given, or never will. Idempotent."""
        if computed:
            self._over.append((now + self._policy.lingers, given.key))
        else:
            self._promised.remove(given.key)
        at = self._fleet.where(given.worker)
        if at is not None and self._fleet.given[at].pop(given.key, None) is not None:
            # Those left begin now: one after the other, as far as is known.
            left = self._fleet.given[at].values()
            self._fleet.until[at] = now + sum(one.seconds for one in left)

    def decide(self, now: float) -> list[tuple[Waiting, Given]]:
        """Who is given what now. To be asked when anything came, ended or was heard, and at
        :meth:`wakes`.
        """
        self._update_fleet()
        while self._over and self._over[0][0] <= now:
            self._promised.remove(self._over.popleft()[1])
        fleet, policy = self._fleet, self._policy
        if not self._waiting or not fleet.workers:
            return []
        self._fade(now)
        workers = Workers(
            work=np.maximum(fleet.until - now, 0.0),
            given=np.array([len(given) for given in fleet.given], dtype=np.int64),
            uneven=policy.uneven * (fleet.lately - fleet.lately.min()),
        )
        terms = Terms(self._price(now), policy.lead, policy.most, policy.patience * self._usual)
        if not terms.room(workers).any():
            return []
        first = heapq.nsmallest(policy.window, self._waiting.values(), key=lambda one: one.order)
        for one in first:
            if now - one.looked_up > policy.stale or one.version != self._version:
                one.held, one.seconds = self._look_up(one.prompt, one.chain)
                one.looked_up, one.version = now, self._version
        placed = place(np.stack([one.seconds for one in first]), workers, terms)
        return [(first[one.row], self._give(first[one.row], one.position, now)) for one in placed]

    def wakes(self, now: float) -> float | None:
        """When to decide again if nothing happens before; None: not then either."""
        ends = self._fleet.until - self._policy.lead
        later = ends[ends > now]
        return float(later.min()) if self._waiting and len(later) else None

    def _give(self, waiting: Waiting, at: int, now: float) -> Given:
        fleet, seconds = self._fleet, float(waiting.seconds[at])
        given = Given(waiting.key, fleet.workers[at], int(waiting.held[at]), seconds)
        self.withdraw(waiting)
        self._promised.add(given.key, given.worker.worker, waiting.chain)
        fleet.given[at][given.key] = given
        fleet.until[at] = max(now, float(fleet.until[at])) + seconds
        fleet.lately[at] += seconds
        return given

    def _look_up(self, prompt: Prompt, chain: bytes) -> tuple[Counts, Floats]:
        """Tokens held by each worker, or about to be, and the seconds that the others take."""
        tiers = self._directory.held(prompt.names).by_slot()[self._fleet.slots]
        blocks = tiers.max(axis=1, initial=0)
        for worker, length in self._promised.lengths(chain).items():
            at = self._fleet.position.get(worker)
            if at is not None:
                blocks[at] = max(blocks[at], length)
        # The last token is always computed: its logits are wanted.
        held = np.minimum(blocks * prompt.block_size, max(0, prompt.tokens - 1))
        new = (prompt.tokens - held).astype(np.float64)
        return held, self._curve.seconds(new, held.astype(np.float64))

    def _price(self, now: float) -> float:
        """What a second of computing is worth in seconds of waiting."""
        lately = self._policy.lately * self._usual
        age = max(_LEAST_AGE * self._usual, now - self._began)
        busy = float(self._fleet.lately.mean()) / (lately * -math.expm1(-age / lately))
        busy = min(busy, _MOST_BUSY)
        return 1 + self._policy.crowded * busy / (1 - busy)

    def _fade(self, now: float) -> None:
        """Lets what workers computed count less as time goes by."""
        self._began = min(self._began, now)
        lately = self._policy.lately * self._usual
        self._fleet.lately *= math.exp(min(0.0, self._faded_at - now) / lately)
        self._faded_at = now

    def _update_fleet(self) -> None:
        workers = [one for one in self._directory.workers("prefill") if one.state == "ready"]
        if len(workers) == len(self._fleet.workers) and all(
            map(_same, workers, self._fleet.workers)
        ):
            return
        fleet = _Fleet(workers, self._directory.slots(workers))
        for given in fleet.take_over(self._fleet):
            self._promised.remove(given.key)
        self._fleet = fleet
        self._version += 1


def _same(one: Announce, other: Announce) -> bool:
    return (one.worker, one.generation) == (other.worker, other.generation)
