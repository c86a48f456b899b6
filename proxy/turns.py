"""Requests wait here for a prefill worker: the scheduler of each layout, kept going.

It is asked anew whenever a request came, left or was served, when it said that a worker would have
room, and every ``LOOK_SECONDS`` while anything waits, because workers come and go unasked.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from kvstore.clock import Clock
from kvstore.curves import Sample
from kvstore.index import Directory, Residency
from kvstore.messages import ROLES, Announce
from proxy import faults
from proxy.loads import Peers
from proxy.pace import Pace
from proxy.prompts import Candidate, Expected, Found, Layout, Prompt, Waiting
from proxy.scheduler import Scheduler
from proxy.workload import Given

LOOK_SECONDS = 0.25

_Told = asyncio.Future[Given | None]


@dataclass
class _Queue:
    """One layout's. ``waiting``: who is to be told, by the scheduler's key."""

    scheduler: Scheduler
    waiting: dict[int, _Told] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    def forgettable(self, now: float) -> bool:
        """Nobody has this layout any more."""
        return not (self.scheduler.staffed(now) or self.scheduler.busy)


class Turns:
    """For one event loop. ``tenant_waiting``: prompts that a tenant may have waiting.

    ``chunk_tokens``: see Scheduler.
    """

    def __init__(
        self,
        directory: Directory,
        peers: Peers,
        tenant_waiting: int,
        clock: Clock,
        chunk_tokens: int = 1,
    ) -> None:
        self._directory = directory
        self._peers = peers
        self._tenant_waiting = tenant_waiting
        self._clock = clock
        self._chunk_tokens = chunk_tokens
        self._queues: dict[Layout, _Queue] = {}
        self._paces: dict[Layout, Pace] = {}

    def pace(self, layout: Layout) -> Pace:
        """How fast the workers of ``layout`` are."""
        if layout not in self._paces:
            known = {Layout.of(one) for role in ROLES for one in self._directory.workers(role)}
            known |= self._queues.keys()  # a scheduler that is left keeps what it was made with
            self._paces = {one: pace for one, pace in self._paces.items() if one in known}
            self._paces[layout] = Pace()
        return self._paces[layout]

    async def take(
        self,
        layout: Layout,
        prompt: Prompt,
        until: float,
        found: Found | None = None,
    ) -> Given | None:
        """Waits until a worker is to compute ``prompt``; then it occupies it until :meth:`ended`.

        ``found``: what the prompt was just ``expected`` to find. None when no worker of that layout
        is ready. Raises ApiError (503) at once where the tenant has too many waiting, or
        the wait would be longer than ``until`` (on the clock).
        """
        queue, now = self._queue(layout), self._clock()
        self._admit(queue, prompt.tenant, now, until)
        waiting = queue.scheduler.enter(prompt, now, found=found)
        told: _Told = asyncio.get_running_loop().create_future()
        queue.waiting[waiting.key] = told
        self._decide(queue, now)
        try:
            return await told
        except asyncio.CancelledError:
            self._leave(queue, waiting, told)
            raise

    def expected(
        self, layout: Layout, prompt: Prompt, residency: Residency | None = None
    ) -> Expected | None:
        """What ``prompt`` has to expect; None where no worker is ready.

        ``residency``: of the prompt, if it has just been looked up.
        """
        return self._queue(layout).scheduler.expected(prompt, self._clock(), residency)

    def candidates(self, layout: Layout, prompt: Prompt) -> list[Candidate]:
        """See :meth:`Scheduler.candidates`."""
        return self._queue(layout).scheduler.candidates(prompt, self._clock())

    def ended(self, given: Given, *, computed: bool, took: Sample | None = None) -> None:
        """The worker has ``computed`` what it was given, or never will. Idempotent.

        ``took``: how long that was, if it is known.
        """
        queue = self._queues.get(Layout.of(given.worker))
        if queue is not None and self._give_back(queue, given, computed=computed):
            if took is not None:
                queue.scheduler.measured(given.worker, took)
            self._decide(queue)

    def failed(self, given: Given) -> None:
        """The worker did not do what it was given: for a while it is given nothing."""
        queue = self._queues.get(Layout.of(given.worker))
        if queue is not None:
            queue.scheduler.failed(given, self._clock())
            self._tell(queue, given.worker)
            self._decide(queue)

    def look(self) -> None:
        """Something was heard of workers: perhaps one has room."""
        for queue in self._queues.values():
            if queue.waiting:
                self._decide(queue)

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def check(self) -> None:
        """Invariant when idle: nothing waits or is computed. Raises AssertionError."""
        assert not len(self), "requests still wait"
        busy = [layout for layout, queue in self._queues.items() if queue.scheduler.busy]
        assert not busy, "workers still count as busy"

    def _admit(self, queue: _Queue, tenant: str, now: float, until: float) -> None:
        wait = queue.scheduler.wait(tenant, now)
        if queue.scheduler.waiting(tenant) >= self._tenant_waiting:
            raise faults.overloaded("Too many requests of yours are waiting.", _retry(wait))
        if now + wait > until and wait < math.inf:
            raise faults.overloaded("The wait would be too long.", _retry(now + wait - until))

    def _leave(self, queue: _Queue, waiting: Waiting, told: _Told) -> None:
        """The request is given up: while it waited, or between its turn and its hearing of it."""
        queue.waiting.pop(waiting.key, None)
        queue.scheduler.withdraw(waiting)
        given = None if told.cancelled() else told.result()
        if given is not None:
            self._give_back(queue, given, computed=False)
        self._decide(queue)

    def _give_back(self, queue: _Queue, given: Given, *, computed: bool) -> bool:
        news = queue.scheduler.ended(given, self._clock(), computed=computed)
        if news:
            self._tell(queue, given.worker)
        return news

    def _tell(self, queue: _Queue, worker: Announce) -> None:
        self._peers.tell(worker, *queue.scheduler.engaged(worker, self._clock()))

    def _queue(self, layout: Layout) -> _Queue:
        if layout not in self._queues:
            now = self._clock()
            for other in [one for one, queue in self._queues.items() if queue.forgettable(now)]:
                del self._queues[other]
            others = self._peers.engagements
            scheduler = Scheduler(
                self._directory,
                layout,
                self.pace(layout),
                engagements=others,
                chunk_tokens=self._chunk_tokens,
            )
            self._queues[layout] = _Queue(scheduler)
        return self._queues[layout]

    def _decide(self, queue: _Queue, now: float | None = None) -> None:
        now = self._clock() if now is None else now
        for waiting, given in queue.scheduler.decide(now):
            told = queue.waiting.pop(waiting.key)
            if told.cancelled():  # it has not come to leaving yet
                queue.scheduler.ended(given, now, computed=False)
            else:
                told.set_result(given)
                self._tell(queue, given.worker)
        for waiting in queue.scheduler.dismiss(now) if queue.waiting else ():
            told = queue.waiting.pop(waiting.key)
            if not told.cancelled():
                told.set_result(None)
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        if queue.waiting:
            wakes = queue.scheduler.wakes(now)
            after = LOOK_SECONDS if wakes is None else min(wakes - now, LOOK_SECONDS)
            loop = asyncio.get_running_loop()
            queue.timer = loop.call_later(max(0.0, after), self._decide, queue)


def _retry(seconds: float) -> int:
    return max(1, math.ceil(seconds)) if seconds < math.inf else faults.RETRY_SECONDS
