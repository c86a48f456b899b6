"""Requests that wait for a prefill worker, and the moment when one is theirs. No I/O, no clock.

A worker is given its next prompt just before it has done with the one before; everything else waits
here, where a better choice stays possible until the last moment. One scheduler serves the prefill
workers of one model and layout.

What a block in DRAM costs to load counts as computing, which it delays; shipping and decode cost
the same wherever a prompt is computed.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import NamedTuple

import numpy as np

from kvstore.curves import Sample
from kvstore.engagements import Engagements
from kvstore.index import Directory, Residency
from kvstore.messages import Announce, ServedAdapter
from proxy.lines import Lines
from proxy.pace import STEP_TOKENS, Pace
from proxy.placement import Floats, Terms, Workers, place
from proxy.promised import Life, Promised
from proxy.prompts import Candidate, Expected, Found, Layout, Prompt, Waiting, holdings
from proxy.weights import Weights
from proxy.workload import Given, Load, Roster, life

_USUAL_SHARE = 0.01
"""Of a new prompt in what is usual, once there have been many."""
_LEAST_AGE = 25.0
"""From so many usual prompts on, the part of the time that workers were busy means something."""
_MOST_BUSY = 0.9
_LEAST_USUAL = 1e-6
_NEWS = 0.1
"""Of how much a worker is slower than others, what its latest prompt counts."""
_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
"""Seconds for which one that failed is given nothing: at first, and at most."""
_MOST_UNLIKE = 4.0
"""Times that a worker is thought to be slower than others, or faster."""
_TICK = 1e-4
"""Seconds by which a waking is later than need be, so that no rounding makes it too early."""


class _Failures(NamedTuple):
    """Of a worker, and until when it is therefore given nothing."""

    in_a_row: int
    until: float


class Scheduler:
    """For one thread; ``now`` is any monotonic clock, in seconds."""

    def __init__(
        self,
        directory: Directory,
        layout: Layout,
        pace: Pace,
        weights: Weights | None = None,
        engagements: Engagements | None = None,
        chunk_tokens: int = 1,
    ) -> None:
        """``chunk_tokens``: what DRAM holds, it holds in pieces of so many."""
        self._directory = directory
        self._layout, self._chunk = layout, chunk_tokens
        self._pace = pace
        self._weights = weights or Weights()
        self._engagements = Engagements() if engagements is None else engagements
        self._lines: Lines[Waiting] = Lines()
        self._wanted: set[ServedAdapter | None] = set()  # by who waits, and by some who did
        self._keys = itertools.count()
        self._promised = Promised()
        self._failures: dict[Life, _Failures] = {}
        self._over: deque[tuple[float, int]] = deque()
        self._loads: dict[Life, Load] = {}
        self._fleet = Roster([], np.empty(0, dtype=np.intp))
        self._version = 0
        self._membership = -1
        self._faded_at = -math.inf
        self._began = math.inf
        self._usual = _LEAST_USUAL
        self._entered = 0

    def __len__(self) -> int:
        return len(self._lines)

    def staffed(self, now: float) -> bool:
        """There is a worker that may be given something, sooner or later."""
        self._update_fleet()
        return bool(np.isfinite(self._workers(now).work).any())

    @property
    def busy(self) -> bool:
        """Something waits or is computed."""
        return bool(self._lines or self._loads)

    def enter(
        self,
        prompt: Prompt,
        now: float,
        since: float | None = None,
        found: Found | None = None,
    ) -> Waiting:
        """``prompt`` waits, from ``now`` on or from where it was ``since`` some time.

        ``found``: what it was just ``expected`` to find, if it was.
        """
        self._update_fleet()
        chain = b"".join(prompt.names)
        if found is None:
            found = self._look_up(prompt, chain, now)
        nothing_held = self._pace.prefill.curve.seconds(float(prompt.tokens), 0.0)
        least = min(nothing_held, float(found.seconds.min(initial=math.inf)))
        self._entered += 1
        self._usual += max(_USUAL_SHARE, 1 / self._entered) * (least - self._usual)
        self._usual = max(self._usual, _LEAST_USUAL)
        size = min(least, self._weights.size_most * self._usual)
        since = now if since is None else since
        waiting = Waiting(
            key=next(self._keys),
            prompt=prompt,
            chain=chain,
            since=since,
            order=since + self._weights.size * size,
            least=least,
            found=found,
            looked_up=now,
            version=self._version,
        )
        self._lines.enter(waiting)
        self._wanted.add(prompt.adapter)
        return waiting

    def withdraw(self, waiting: Waiting) -> None:
        """It waits no more. Idempotent."""
        self._lines.leave(waiting)

    def dismiss(self, now: float) -> list[Waiting]:
        """Who waited for a worker that is not there any more; they wait no longer."""
        self._update_fleet()
        there = np.isfinite(self._workers(now).work)
        if not self._lines:
            self._wanted.clear()
        hopeless = {one for one in self._wanted if not (there & self._fleet.serving(one)).any()}
        if not hopeless:
            return []
        self._wanted -= hopeless
        left = [one for one in self._lines if one.prompt.adapter in hopeless]
        for waiting in left:
            self._lines.leave(waiting)
        return left

    def waiting(self, tenant: str) -> int:
        """How many of ``tenant`` wait."""
        return self._lines.of(tenant)

    def wait(self, tenant: str, now: float) -> float:
        """Seconds until one more prompt of ``tenant`` would be given to a worker, as far as known.

        Infinite where there is no worker.
        """
        self._update_fleet()
        return self._wait(tenant, self._workers(now).work)

    def ended(self, given: Given, now: float, *, computed: bool) -> bool:
        """The worker has ``computed`` what it was given, or never will; whether that is news."""
        load = self._loads.get(life(given.worker))
        if load is None or not load.ended(given.key, now):
            return False
        if computed:
            self._failures.pop(life(given.worker), None)
            self._over.append((now + self._weights.lingers, given.key))
        else:
            self._promised.remove(given.key)
        if not load.given:
            del self._loads[life(given.worker)]
        return True

    def expected(
        self, prompt: Prompt, now: float, residency: Residency | None = None
    ) -> Expected | None:
        """What ``prompt`` would have to expect; None where there is no worker for it."""
        self._update_fleet()
        work = self._workers(now).work
        wait = self._wait(prompt.tenant, work)
        if not math.isfinite(wait):
            return None
        found = self._look_up(prompt, b"".join(prompt.names), now, residency)
        ends = np.maximum(work, wait) + found.seconds
        at = int(np.argmin(ends))
        if not math.isfinite(ends[at]):
            return None
        held, pace = int(found.held[at]), self._pace
        after = pace.after(min(prompt.tokens - held, STEP_TOKENS), busy=False)
        return Expected(float(ends[at]), held, pace.prefill.curve, after, found)

    def failed(self, given: Given, now: float) -> None:
        """The worker did not compute what it should have: for a while it is given nothing, and for
        longer each time that this happens in a row.
        """
        one = life(given.worker)
        before = self._failures[one].in_a_row if one in self._failures else 0
        pause = min(_PAUSE * 2**before, _LONGEST_PAUSE)
        self._failures[one] = _Failures(before + 1, now + pause)
        self.ended(given, now, computed=False)

    def measured(self, worker: Announce, sample: Sample) -> None:
        """How long ``worker`` took for a prompt."""
        at = self._fleet.position.get(life(worker))
        if at is not None:
            usual = self._pace.prefill.curve.seconds(sample.new, sample.held)
            ratio = min(max(sample.seconds / usual, 1 / _MOST_UNLIKE), _MOST_UNLIKE)
            self._fleet.slowness[at] *= (ratio / self._fleet.slowness[at]) ** _NEWS
        self._pace.prefill.add(sample)

    def decide(self, now: float) -> list[tuple[Waiting, Given]]:
        """Who is given what now. To be asked when anything came, ended or was heard, and at
        :meth:`wakes`.
        """
        self._update_fleet()
        self._heard(now)
        fleet, weights = self._fleet, self._weights
        if not self._lines or not fleet.workers:
            return []
        self._fade(now)
        fleet.hear(self._engagements.given)
        workers, terms = self._workers(now), self._terms(now)
        if not terms.room(workers).any():
            return []
        first = self._lines.first(weights.window, len(fleet.workers))
        for at, one in enumerate(first):
            old = at < weights.fresh and now - one.looked_up > weights.stale
            if old or one.version != self._version:
                one.found = self._look_up(one.prompt, one.chain, now)
                one.looked_up, one.version = now, self._version
        leanings = (fleet.lean(one.prompt.hint, one.found.held, one.found.seconds) for one in first)
        placed = place((one.found.seconds for one in first), workers, terms, leanings)
        return [(first[row], self._give(first[row], at, workers, now)) for row, at in placed]

    def wakes(self, now: float) -> float | None:
        """When to decide again if nothing happens before; None: not then either."""
        if not self._lines:
            return None
        ends = [load.until for load in self._loads.values()]
        ends += [engagement.until for _, engagement in self._engagements]
        ends += [failures.until for failures in self._failures.values()]
        lead = self._weights.lead
        return min((end - lead + _TICK for end in ends if end - lead > now), default=None)

    def engaged(self, worker: Announce, now: float) -> tuple[int, float]:
        """How many prompts ``worker`` was given and has, and the seconds of work they are."""
        load = self._loads.get(life(worker))
        return (0, 0.0) if load is None else (len(load.given), load.work(now))

    def candidates(self, prompt: Prompt, now: float) -> list[Candidate]:
        """Every worker for ``prompt`` as it would find it, the one it would be meant for first.

        What waits is not weighed.
        """
        self._update_fleet()
        if not self._fleet.workers:
            return []
        found = self._look_up(prompt, b"".join(prompt.names), now)
        workers = self._workers(now)
        costs = workers.work + workers.against + self._price(now) * found.seconds
        if (lean := self._fleet.lean(prompt.hint, found.held, found.seconds)) is not None:
            costs[lean.position] -= lean.seconds
        figures = found.held, found.seconds, workers.work, workers.given, workers.against, costs
        rows = zip(self._fleet.workers, *(one.tolist() for one in figures), strict=True)
        able = (one for one in map(Candidate._make, rows) if math.isfinite(one.seconds))
        return sorted(able, key=lambda one: one.costs)

    def _wait(self, tenant: str, work: Floats) -> float:
        working = work[np.isfinite(work)]
        if not len(working):
            return math.inf
        # One that is late, however much, does not keep the others from working.
        working = np.minimum(working, self._patience)
        before = self._lines.before(tenant)
        return float((working.sum() + before) / len(working) if before else working.min())

    def _workers(self, now: float) -> Workers:
        lately = self._fleet.lately
        work, given = np.zeros(len(lately)), np.zeros(len(lately), dtype=np.int64)
        for one, load in self._loads.items():  # as many as are busy, of perhaps many more
            at = self._fleet.position.get(one)
            if at is not None:
                work[at], given[at] = load.work(now), len(load.given)
        for one, engagement in self._engagements:
            at = self._fleet.position.get(one)
            if at is not None:
                work[at] += engagement.work(now)
                given[at] += engagement.prompts
        for one, failures in self._failures.items():
            at = self._fleet.position.get(one)
            if at is not None and now < failures.until:
                work[at] = math.inf
        least = lately.min(initial=math.inf)
        return Workers(work, given, self._weights.uneven * (lately - least))

    def _terms(self, now: float) -> Terms:
        weights = self._weights
        return Terms(self._price(now), weights.lead, weights.most, self._patience)

    @property
    def _patience(self) -> float:
        """Seconds."""
        return self._weights.patience * self._usual

    def _give(self, waiting: Waiting, at: int, workers: Workers, now: float) -> Given:
        if waiting.looked_up < now:  # the legs are told what it finds, and so are operators
            waiting.found = self._look_up(waiting.prompt, waiting.chain, now)
        worker, (held, loads, seconds) = self._fleet.workers[at], waiting.found.of(at)
        loading = self._pace.loading(float(loads))
        given = Given(waiting.key, worker, held, seconds, loads, loading, float(workers.work[at]))
        workers.work[at] += seconds  # what comes after it in this round has that before it
        self._lines.given(waiting, len(self._fleet.workers), now)
        self._promised.add(given.key, life(worker), waiting.chain)
        self._loads.setdefault(life(worker), Load()).give(given, now)
        self._fleet.lately[at] += seconds
        return given

    def _look_up(
        self, prompt: Prompt, chain: bytes, now: float, residency: Residency | None = None
    ) -> Found:
        """What each worker holds, or is about to."""
        self._heard(now)
        if residency is None:
            residency = self._directory.held(prompt.names)
        gpu, dram = residency.by_slot()[self._fleet.slots].T
        for one, length in self._promised.lengths(chain).items():
            at = self._fleet.position.get(one)
            if at is not None:
                gpu[at] = max(gpu[at], length)
        held, loads = holdings(gpu, dram, prompt.tokens, self._layout.block_size, self._chunk)
        floats = held.astype(np.float64)
        computing = self._pace.prefill.curve.seconds(prompt.tokens - floats, floats)
        loading = self._pace.loading(loads.astype(np.float64))
        seconds = computing * self._fleet.slowness + loading
        if prompt.adapter is not None:
            seconds[~self._fleet.serving(prompt.adapter)] = math.inf
        return Found(held, loads, seconds)

    def _heard(self, now: float) -> None:
        """The feed has told of what was computed long enough ago."""
        while self._over and self._over[0][0] <= now:
            self._promised.remove(self._over.popleft()[1])

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
            if one.state == "ready" and Layout.of(one) == self._layout
        ]
        fleet = Roster(workers, self._directory.slots(workers))
        same = fleet.position == self._fleet.position
        lives = fleet.position.keys()
        self._failures = {one: known for one, known in self._failures.items() if one in lives}
        if same and np.array_equal(fleet.slots, self._fleet.slots):
            self._fleet.renew(fleet.workers)
            return
        fleet.take_over(self._fleet)
        self._fleet = fleet
        self._version += 1
