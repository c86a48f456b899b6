"""Requests that wait for a prefill worker, and the moment when one is theirs. No I/O, no clock.

A worker is given its next prompt just before it has done with the one before; everything else waits
here, where a better choice stays possible until the last moment. One scheduler serves the prefill
workers of one model.

What a block in DRAM costs to load, and shipping and decode, it does not weigh yet; all workers are
taken to be equally fast, and tenants have no shares.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvstore.curves import PrefillCurve
from kvstore.index import Directory
from kvstore.messages import Announce
from proxy.placement import Counts, Floats, Terms, Workers, place
from proxy.promised import Life, Promised

_USUAL_SHARE = 0.01
"""Of a new prompt in what is usual, once there have been many."""
_LEAST_AGE = 25.0
"""From so many usual prompts on, the part of the time that workers were busy means something."""
_MOST_BUSY = 0.9
_LEAST_USUAL = 1e-6
_TICK = 1e-4
"""Seconds by which a waking is later than need be, so that no rounding makes it too early."""


@dataclass(frozen=True)
class Weights:
    """How prompts are weighed against each other.

    ``lead`` (seconds) and ``most``: see :class:`proxy.placement.Terms`; ``patience`` too, but here
    it is in prompts of usual length, as is ``lately``. A second of computing is worth one of
    waiting where workers are idle; where they are busy for a part r of the time, ``crowded`` times
    r / (1 - r) more: that is how many others it delays. ``uneven``: seconds that speak against a
    worker for each that it computed more than the least busy one ``lately``. ``size``: seconds by
    which a prompt stands behind later ones for each second that it takes, which count up to
    ``size_most`` times the usual. ``fresh``: prompts at the head of the queue for which the
    workers' holdings are looked up again every ``stale`` seconds; ``window``: prompts that are
    looked at. ``lingers``: seconds after its end for which a prompt counts as held though the feed
    does not tell of it yet.

    Chosen on Mooncake's conversation trace (``kvferry bench simulate``).
    """

    crowded: float = 2.5
    lead: float = 0.02
    most: int = 8
    patience: float = 10.0
    uneven: float = 0.02
    lately: float = 750.0
    size: float = 3.0
    size_most: float = 1.25
    fresh: int = 64
    window: int = 1024
    stale: float = 0.25
    lingers: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """``tokens`` of a prompt; ``names`` of its whole blocks of ``block_size`` each."""

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


@dataclass
class _Load:
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


class _Fleet:
    """Workers by position. ``lately``: seconds that each computed, faded."""

    def __init__(self, workers: Sequence[Announce], slots: npt.NDArray[np.intp]) -> None:
        self.workers = list(workers)
        self.slots = slots
        self.position = {_life(worker): at for at, worker in enumerate(workers)}
        self.lately = np.zeros(len(workers))

    def take_over(self, other: _Fleet) -> None:
        """What ``other`` knew of the same workers; a new one counts as the least busy of them."""
        if other.workers:
            self.lately[:] = other.lately.min()
        for before, worker in enumerate(other.workers):
            at = self.position.get(_life(worker))
            if at is not None:
                self.lately[at] = other.lately[before]


class Scheduler:
    """For one thread; ``now`` is any monotonic clock, in seconds."""

    def __init__(
        self,
        directory: Directory,
        model: str,
        curve: PrefillCurve,
        weights: Weights | None = None,
    ) -> None:
        self._directory = directory
        self._model = model
        self._curve = curve
        self._weights = weights or Weights()
        self._queue: list[Waiting] = []
        self._keys = itertools.count()
        self._promised = Promised()
        self._over: deque[tuple[float, int]] = deque()
        self._loads: dict[Life, _Load] = {}
        self._fleet = _Fleet([], np.empty(0, dtype=np.intp))
        self._version = 0
        self._membership = -1
        self._faded_at = -math.inf
        self._began = math.inf
        self._usual = 0.0
        self._entered = 0

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, prompt: Prompt, now: float, since: float | None = None) -> Waiting:
        """``prompt`` waits, from ``now`` on or from where it was ``since`` some time."""
        self._update_fleet()
        chain = b"".join(prompt.names)
        held, seconds = self._look_up(prompt, chain)
        nothing_held = self._curve.seconds(float(prompt.tokens), 0.0)
        least = min(nothing_held, float(seconds.min(initial=math.inf)))
        self._entered += 1
        self._usual += max(_USUAL_SHARE, 1 / self._entered) * (least - self._usual)
        self._usual = max(self._usual, _LEAST_USUAL)
        size = min(least, self._weights.size_most * self._usual)
        order = (now if since is None else since) + self._weights.size * size
        waiting = Waiting(next(self._keys), prompt, chain, order, held, seconds, now, self._version)
        bisect.insort(self._queue, waiting, key=_place)
        return waiting

    def withdraw(self, waiting: Waiting) -> None:
        """It waits no more. Idempotent."""
        at = bisect.bisect_left(self._queue, _place(waiting), key=_place)
        if at < len(self._queue) and self._queue[at] is waiting:
            del self._queue[at]

    def ended(self, given: Given, now: float, *, computed: bool) -> None:
        """The worker has ``computed`` what it was given, or never will. Idempotent."""
        life = _life(given.worker)
        load = self._loads.get(life)
        if load is None or not load.ended(given.key, now):
            return
        if computed:
            self._over.append((now + self._weights.lingers, given.key))
        else:
            self._promised.remove(given.key)
        if not load.given:
            del self._loads[life]

    def decide(self, now: float) -> list[tuple[Waiting, Given]]:
        """Who is given what now. To be asked when anything came, ended or was heard, and at
        :meth:`wakes`.
        """
        self._update_fleet()
        while self._over and self._over[0][0] <= now:
            self._promised.remove(self._over.popleft()[1])
        fleet, weights = self._fleet, self._weights
        if not self._queue or not fleet.workers:
            return []
        self._fade(now)
        loads = [self._loads.get(life) for life in fleet.position]
        workers = Workers(
            work=np.array([load.work(now) if load else 0.0 for load in loads]),
            given=np.array([len(load.given) if load else 0 for load in loads]),
            against=weights.uneven * (fleet.lately - fleet.lately.min()),
        )
        terms = Terms(self._price(now), weights.lead, weights.most, weights.patience * self._usual)
        if not terms.room(workers).any():
            return []
        first = self._queue[: weights.window]
        for at, one in enumerate(first):
            old = at < weights.fresh and now - one.looked_up > weights.stale
            if old or one.version != self._version:
                one.held, one.seconds = self._look_up(one.prompt, one.chain)
                one.looked_up, one.version = now, self._version
        placed = place((one.seconds for one in first), workers, terms)
        return [(first[row], self._give(first[row], position, now)) for row, position in placed]

    def wakes(self, now: float) -> float | None:
        """When to decide again if nothing happens before; None: not then either."""
        if not self._queue:
            return None
        ends = (load.until - self._weights.lead for load in self._loads.values())
        return min((end + _TICK for end in ends if end > now), default=None)

    def _give(self, waiting: Waiting, at: int, now: float) -> Given:
        worker, seconds = self._fleet.workers[at], float(waiting.seconds[at])
        given = Given(waiting.key, worker, int(waiting.held[at]), seconds)
        self.withdraw(waiting)
        self._promised.add(given.key, _life(worker), waiting.chain)
        self._loads.setdefault(_life(worker), _Load()).give(given, now)
        self._fleet.lately[at] += seconds
        return given

    def _look_up(self, prompt: Prompt, chain: bytes) -> tuple[Counts, Floats]:
        """Tokens held by each worker, or about to be, and the seconds that the others take."""
        tiers = self._directory.held(prompt.names).by_slot()[self._fleet.slots]
        blocks = tiers.max(axis=1, initial=0)
        for life, length in self._promised.lengths(chain).items():
            at = self._fleet.position.get(life)
            if at is not None:
                blocks[at] = max(blocks[at], length)
        # The last token is always computed: its logits are wanted.
        held = np.minimum(blocks * prompt.block_size, max(0, prompt.tokens - 1))
        new = (prompt.tokens - held).astype(np.float64)
        return held, self._curve.seconds(new, held.astype(np.float64))

    def _price(self, now: float) -> float:
        """What a second of computing is worth in seconds of waiting."""
        lately = self._weights.lately * self._usual
        age = max(_LEAST_AGE * self._usual, now - self._began)
        busy = float(self._fleet.lately.mean()) / (lately * -math.expm1(-age / lately))
        busy = min(busy, _MOST_BUSY)
        return 1 + self._weights.crowded * busy / (1 - busy)

    def _fade(self, now: float) -> None:
        """Lets what workers computed count less as time goes by."""
        self._began = min(self._began, now)
        lately = self._weights.lately * self._usual
        self._fleet.lately *= math.exp(min(0.0, self._faded_at - now) / lately)
        self._faded_at = now

    def _update_fleet(self) -> None:
        if self._directory.membership == self._membership:
            return
        self._membership = self._directory.membership
        workers = [
            one
            for one in self._directory.workers("prefill")
            if one.state == "ready" and one.model == self._model
        ]
        fleet = _Fleet(workers, self._directory.slots(workers))
        same = fleet.position == self._fleet.position
        if same and np.array_equal(fleet.slots, self._fleet.slots):
            self._fleet.workers = fleet.workers
            return
        fleet.take_over(self._fleet)
        self._fleet = fleet
        self._version += 1


def _life(worker: Announce) -> Life:
    return worker.worker, worker.generation


def _place(waiting: Waiting) -> tuple[float, int]:
    """In the queue."""
    return waiting.order, waiting.key
