"""The scheduler half's part in what holds for tenants: standings in, wipes and accounts out. Pure.

Standings come with an errand (:class:`kvstore.handoff.TenancyTicket`), a request that the worker's
gate sends through the engine, since vLLM takes nothing else from outside while it is idle. It is
heard when it joins the queue, so a busy engine hears it as well, whatever becomes of the request.

A flush, of a tenant's older epochs, is over when none of their blocks is in use any more and all
that the pool had soiled by then has been overwritten. Overwritten is what the worker half has told
of: it does so with the output of the step that ordered it, and vLLM brings outputs in the order of
steps, also where it schedules the next step before the last one's output is there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvstore.clock import Clock
from kvstore.errors import WireError
from kvstore.handoff import EngineRequest, TenancyReport, tenancy_ticket
from kvstore.holdings import usage
from kvstore.messages import Holding, Standing, Usage, Wiped
from kvstore.standings import Standings
from kvstore.wiping import NO_WIPES, Wipes

WIPE_BYTES = 64 << 20
"""As much is overwritten in one step, so that others' tokens wait some milliseconds only."""

HURRY_SECONDS = 3.0
"""More is where steps take so long that a flush would not be over by then."""

TELL_SECONDS = 1.0
"""How often what is held of tenants is told while it changes."""

TELL_IDLE_SECONDS = 0.05
"""How long after the last time, at least, an engine that becomes idle tells how it is left."""

LATE_SECONDS = 5.0
"""A flush that takes longer is warned of, once; it goes on."""

log = logging.getLogger("kvferry.tenants")


class TenantBlocks(Protocol):
    """The engine's blocks (``kvstore.engine_pool.TenantPool`` says what each of these does)."""

    @property
    def capacity(self) -> int: ...
    @property
    def changes(self) -> int: ...
    @property
    def soiled(self) -> int: ...

    def share(self, tag: str, floor: float, limit: float) -> None: ...

    def claim(self, salt: str | None, block_ids: Iterable[int]) -> None: ...

    def flush(self, tag: str, epoch: int) -> int: ...

    def left(self, tag: str, epoch: int) -> int: ...

    def take_soiled(self, most: int) -> list[int]: ...

    def mark(self) -> int: ...

    def clean_since(self, mark: int) -> bool: ...

    def holdings(self) -> dict[str, tuple[int, int]]: ...


@dataclass
class _Flush:
    """``mark``: of the pool, once no block is in use. ``number``: of the last order it needs."""

    epoch: int
    began: float
    blocks: int
    mark: int | None = None
    number: int | None = None
    warned: bool = False


class EngineTenants:
    """Owned by the engine's scheduler; no method waits for anything."""

    def __init__(self, pool: TenantBlocks, worker: str, block_bytes: int, clock: Clock) -> None:
        self._pool = pool
        self._worker = worker
        self._block_bytes = block_bytes
        self._clock = clock
        self._standings = Standings()
        self._flushes: dict[str, _Flush] = {}
        self._salts: dict[str, str | None] = {}
        self._errands: set[str] = set()
        self._stepped_at = clock()
        self._ordered = 0
        self._done = 0
        self._told: list[Usage | Wiped] = []
        self._last_told: Mapping[str, tuple[int, int]] | None = None
        self._looked_at = float("-inf")
        self._busy_since: float | None = None
        self._seen_changes = -1
        self._flushed = False

    def added(self, request: EngineRequest) -> bool:
        """A request joins the engine's queue; whether it is an errand, and nobody else's."""
        self._salts[request.request_id] = request.cache_salt
        try:
            ticket = tenancy_ticket(request.kv_transfer_params)
        except WireError as error:
            log.warning("an errand that cannot be read: %s", error)
            return True
        if ticket is None:
            return False
        self._errands.add(request.request_id)
        for standing in ticket.standings:
            self._take(standing)
        return True

    def allocated(self, request: str, tables: Iterable[Sequence[int]]) -> None:
        """The engine has given a request its first blocks; its table in each KV group."""
        for table in tables:
            self._pool.claim(self._salts.get(request), table)

    def step(self, new_blocks: Iterable[tuple[str, Sequence[int]]], idle: bool = False) -> Wipes:
        """What is to be overwritten before the next step's forward pass.

        ``new_blocks``: that running requests have got with it. ``idle``: it computes nothing.
        """
        for request, blocks in new_blocks:
            self._pool.claim(self._salts.get(request), blocks)
        for tag, flush in self._flushes.items():
            if flush.mark is None and not self._pool.left(tag, flush.epoch):
                flush.mark = self._pool.mark()
        blocks = self._pool.take_soiled(self._most())
        if blocks:
            self._ordered += 1
        self._end_flushes()
        self._look(idle)
        return Wipes(self._ordered, blocks) if blocks else NO_WIPES

    def wiped(self, number: int) -> None:
        """The worker half has carried out orders up to this one."""
        self._done = max(self._done, number)
        self._end_flushes()

    def finished(self, request: str) -> TenancyReport | None:
        """The engine is through with a request; what it brings back if it was an errand."""
        self._salts.pop(request, None)
        if request not in self._errands:
            return None
        self._errands.discard(request)
        return TenancyReport(len(self._flushes))

    def flushing(self) -> dict[str, int]:
        """Tenants whose flush is not over, by tag, and the epoch below which nothing is kept."""
        return {tag: flush.epoch for tag, flush in self._flushes.items()}

    def take_told(self) -> list[Usage | Wiped]:
        """What the worker's relay is to hear since the last call."""
        told, self._told = self._told, []
        return told

    def restless(self) -> bool:
        """Whether the engine must take another step though no request needs one."""
        unseen = self._flushed or self._pool.changes != self._seen_changes
        return unseen or self._pool.soiled > 0

    # -- inside

    def _take(self, standing: Standing) -> None:
        before = self._standings.of(standing.tag)
        try:
            changed = self._standings.take([standing])
        except WireError as error:
            log.error("a tenant's standing is not in force here: %s", error)  # noqa: TRY400
            return
        for now in changed:
            if (now.floor, now.limit) != (before.floor, before.limit):
                self._pool.share(now.tag, now.floor, now.limit)
            if now.epoch > before.epoch:
                self._flush(now.tag, now.epoch)

    def _flush(self, tag: str, epoch: int) -> None:
        blocks, under_way = self._pool.flush(tag, epoch), self._flushes.get(tag)
        if under_way is not None:
            under_way.epoch, under_way.mark, under_way.number = epoch, None, None
            under_way.blocks += blocks
        else:
            self._flushes[tag] = _Flush(epoch, self._clock(), blocks)

    def _most(self) -> int:
        """How many blocks this step overwrites, besides those that it gives away."""
        now = self._clock()
        taken, self._stepped_at = now - self._stepped_at, now
        few = max(1, WIPE_BYTES // self._block_bytes)
        if not self._flushes:
            return few
        began = min(flush.began for flush in self._flushes.values())
        taken = min(taken, now - began)  # An engine that was idle before does not step slowly.
        steps_left = (began + HURRY_SECONDS - now) / taken if taken > 0 else math.inf
        return max(few, math.ceil(self._pool.soiled / max(1.0, steps_left)))

    def _end_flushes(self) -> None:
        for tag, flush in list(self._flushes.items()):
            taken = max(0.0, self._clock() - flush.began)
            if flush.number is None and flush.mark is not None:
                flush.number = self._ordered if self._pool.clean_since(flush.mark) else None
            if flush.number is not None and flush.number <= self._done:
                del self._flushes[tag]
                size = flush.blocks * self._block_bytes
                self._told.append(Wiped(self._worker, "gpu", tag, flush.epoch, size, taken))
                # How much is left is told with the next step, and there is one.
                self._flushed = True
            elif taken > LATE_SECONDS and not flush.warned:
                flush.warned = True
                log.warning("memory of a flushed tenant is in use for %.0f s", taken)

    def _look(self, idle: bool) -> None:
        """Tell what is held, if it is time and something has changed.

        Time is when the engine becomes idle, and while it does not, every now and then: what it
        tells as it begins would keep it from resting when it is soon done.
        """
        now = self._clock()
        if idle:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        due = self._looked_at + TELL_IDLE_SECONDS
        if self._busy_since is not None:
            due = max(self._looked_at, self._busy_since) + TELL_SECONDS
        if now < due and not self._flushed:
            return
        self._looked_at, self._seen_changes, self._flushed = now, self._pool.changes, False
        held = self._pool.holdings()
        if held != self._last_told:
            self._last_told = held
            self._told += self._usage(held)

    def _usage(self, held: Mapping[str, tuple[int, int]]) -> list[Usage]:
        size = self._block_bytes
        holdings = [Holding(tag, idle * size, used * size) for tag, (idle, used) in held.items()]
        return usage(self._worker, "gpu", self._pool.capacity * size, holdings)
