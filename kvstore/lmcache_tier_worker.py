"""The worker's side of the DRAM tier: one thread that copies between pages and LMCache's memory.

::

    engine's thread                     tier thread (a registration for each part)
      store, load ──▶ OpQueue ──▶ reserve ─▶ gather, seal ─▶ file ─▶ commit
      drain ◀── results ──┘       read ───▶ scatter, verify ─▶ unlock
      withdraw                    nothing to do: probe; lost: reconnect and register anew

Safety: pages are touched only between ``begin_copy`` and ``end_copy``, and ``withdraw`` returns
only when that is over or will never begin. A store that was not copied in time is never committed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.blockhash import NAME_BYTES
from kvstore.clock import Clock
from kvstore.cluster import Dram
from kvstore.errors import TierDown
from kvstore.lmcache_filing import Filing, filings
from kvstore.lmcache_tier_link import Link, Naming, Registration
from kvstore.messages import Enrol
from kvstore.pages import KVPages, open_pages
from kvstore.tier import Health, Job, Kind, OpQueue, TierOp, TierResult, is_kept
from kvstore.tier_seal import Bytes, Scope, is_blank, is_whole, names, write_seal
from kvstore.tier_shape import Part, TierShape

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

log = logging.getLogger("kvferry.tier")

QUEUE_LIMIT = 256
HEARTBEAT_SECONDS = 1.0
ATTEMPT_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 2.0
GRACE_SECONDS = 0.05
"""How long ``withdraw`` waits for a copy that is about to begin, so that its store is not lost."""


@dataclass(frozen=True)
class _Outcome:
    ok: bool
    blocks: int = 0
    reason: str | None = None


class LMCacheCopy:
    """``TierCopy`` over LMCache. Any thread may call it; ``_changed`` guards all that is shared."""

    def __init__(
        self,
        dram: Dram,
        worker: str,
        naming: Naming,
        scope: Scope,
        shape: TierShape,
        clock: Clock = time.monotonic,
    ) -> None:
        self._dram = dram
        self._worker = worker
        self._shape = shape
        self._filings = filings(naming, scope, shape)
        self._clock = clock
        self._attempt = min(ATTEMPT_SECONDS, dram.operation_seconds)
        self._pause = FIRST_PAUSE_SECONDS
        self._pages: KVPages | None = None
        self._changed = threading.Condition()
        self._queue = OpQueue(QUEUE_LIMIT)
        self._stranded: deque[TierOp] = deque(maxlen=QUEUE_LIMIT)
        self._health: Health | None = None
        self._reason = "connecting"
        self._closing = False
        self._leftovers: list[int] = []
        self._thread = threading.Thread(target=self._run, name="kvferry-tier-copy", daemon=True)

    # -- the engine's thread

    def attach(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """See ``TierCopy``."""
        self._pages = open_pages(list(kv_caches.values()))
        self._thread.start()

    def store(self, op: TierOp) -> None:
        """See ``TierCopy``."""
        self._submit("store", op)

    def load(self, op: TierOp) -> None:
        """See ``TierCopy``."""
        self._submit("load", op)

    def withdraw(self, request: str) -> None:
        """See ``TierCopy``. Waits for one copy at most, which is memory moving and nothing else."""
        with self._changed:
            self._strand(self._queue.withdraw(request))
            self._changed.wait_for(lambda: not self._queue.touches(request), GRACE_SECONDS)
            self._queue.abandon(request)
            seconds = self._dram.operation_seconds
            if not self._changed.wait_for(lambda: not self._queue.touches(request), seconds):
                # Going on would let a copy write into, or read from, another request's pages.
                raise TierDown(f"a copy of one request's pages has not ended in {seconds} s")

    def drain(self) -> list[TierResult]:
        """See ``TierCopy``."""
        with self._changed:
            return self._queue.drain()

    def status(self) -> Health:
        """See ``TierCopy``."""
        with self._changed:
            return self._health or "down"

    def close(self) -> None:
        """See ``TierCopy``. Waits for the op under way."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(self._dram.operation_seconds + 2 * self._attempt)

    def _submit(self, kind: Kind, op: TierOp) -> None:
        reason = self._misfit(op) or (self._unnamed(op) if kind == "store" else None)
        with self._changed:
            if reason is None and self._health != "up":
                reason = self._reason
            deadline = self._clock() + self._dram.operation_seconds
            if reason is not None:
                self._queue.refuse(kind, op, reason)
                self._strand([Job(kind, op, deadline)])
            elif self._queue.submit(kind, op, deadline):
                self._changed.notify_all()
            else:
                self._strand([Job(kind, op, deadline)])

    def _misfit(self, op: TierOp) -> str | None:
        chunk, pages = self._shape.chunk_tokens, self._pages.blocks if self._pages else 0
        if op.start % chunk or op.end % chunk or not 0 <= op.start < op.end <= len(op.tokens):
            return f"not whole chunks: tokens {op.start} to {op.end} of {len(op.tokens)}"
        if op.part not in self._filings:
            return f"no {op.part} are kept of this model"
        places = self._shape.places(op.part, op.start, op.end)
        if len(op.block_ids) != len(places) or not 0 <= op.skip_blocks <= len(places):
            return f"{len(op.block_ids)} blocks, {op.skip_blocks} skipped, of {len(places)}"
        if not all(0 <= page < pages for page in op.block_ids):
            return f"block ids beyond the {pages} attached"
        return None if is_kept(op.salt) else "nothing is kept under this salt"

    def _unnamed(self, op: TierOp) -> str | None:
        blocks = (op.end - op.start) // self._shape.block_size
        if len(op.names) == blocks * NAME_BYTES:
            return None
        return f"{len(op.names)} bytes of names for {blocks} blocks"

    def _strand(self, jobs: Iterable[Job]) -> None:
        """These loads will not run: what was locked for them is to be unlocked."""
        for job in jobs:
            if job.kind == "load" and self._misfit(job.op) is None:
                self._stranded.append(job.op)

    # -- the tier's thread

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    self._connect()
                except TierDown as error:
                    self._go_down(str(error))
                self._rest()
            self._go_down("closed")
        except Exception:
            log.exception("the DRAM tier's copying has failed for good")
            with self._changed:
                if self._queue.busy:
                    self._queue.finish(ok=False, reason="its thread has failed")
                    self._changed.notify_all()
            self._go_down("its thread has failed")

    def _rest(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._pause)
        self._pause = min(2 * self._pause, LAST_PAUSE_SECONDS)

    def _connect(self) -> None:
        """Serve over one connection until it is lost (TierDown) or we are closed."""
        link = Link(self._dram.port, lambda: self._closing)
        try:
            link.require_chunk(self._dram.chunk_tokens, self._attempt)
            link.tell(Enrol(self._worker, self._filings["chunks"].feed_scope), self._attempt)
            places = {part: self._register(link, of) for part, of in self._filings.items()}
            self._sign_off(places["chunks"])
            try:
                self._go_up()
                while not self._closing:
                    self._serve(places)
            finally:
                left = [place.leftover() for place in places.values()]
                self._leftovers = [instance for instance in left if instance is not None]
            self._sign_off(places["chunks"])
        finally:
            link.close()

    def _register(self, link: Link, filing: Filing) -> Registration:
        slot_bytes = filing.blocks * self._block_bytes()
        place = Registration(link, filing.naming, filing.scope.rank, slot_bytes)
        place.open(self._shape.block_size, self._attempt)
        place.probe(self._attempt)
        return place

    def _sign_off(self, place: Registration) -> None:
        while self._leftovers:
            place.sign_off(self._leftovers[-1], self._attempt)
            self._leftovers.pop()

    def _serve(self, places: dict[Part, Registration]) -> None:
        job, stranded = self._next()
        if job is not None:
            self._perform(places[job.op.part], job)
        elif stranded is not None:
            place = places[stranded.part]
            key = self._filings[stranded.part].key(stranded, place.session())
            if place.read(key, self._attempt) is not None:
                place.unlock(key, self._attempt)
            place.forget(key.request_id)
        elif not self._closing:
            for place in places.values():
                place.probe(self._attempt)

    def _next(self) -> tuple[Job | None, TierOp | None]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or len(self._queue) or self._stranded, HEARTBEAT_SECONDS
            )
            if job := self._queue.take():
                return job, None
            return None, self._stranded.popleft() if self._stranded else None

    def _perform(self, place: Registration, job: Job) -> None:
        try:
            if self._left(job) <= 0:
                outcome = _Outcome(ok=False, reason="too late")
                with self._changed:
                    self._strand([job])
            elif job.kind == "store":
                outcome = self._store(place, job)
            else:
                outcome = self._load(place, job)
        except TierDown as error:
            self._finish(_Outcome(ok=False, reason=str(error)))
            raise
        self._finish(outcome)

    def _store(self, place: Registration, job: Job) -> _Outcome:
        op, filing = job.op, self._filings[job.op.part]
        key, identities = filing.key(op, place.session()), filing.identities(op)
        slots = place.reserve(key, self._left(job))
        if not self._begin_copy():
            place.give_back(key, slots, self._attempt)
            return _Outcome(ok=False)
        copied = 0
        for position, slot in slots:
            blocks, part = self._part(op, position, slot)
            self._paged().gather(blocks, part)
            copied += len(blocks)
            write_seal(slot, identities[position])
        self._end_copy()
        if self._left(job) <= 0:
            place.give_back(key, slots, self._attempt)
            return _Outcome(ok=False, reason="too late")
        for filed in filing.filed(op, key, [position for position, _ in slots]):
            place.file(filed, self._left(job))
        if slots and not place.commit(key, self._left(job)):
            return _Outcome(ok=False, reason="LMCache has given the reservation up")
        place.forget(key.request_id)
        return _Outcome(ok=True, blocks=copied)

    def _load(self, place: Registration, job: Job) -> _Outcome:
        op, filing = job.op, self._filings[job.op.part]
        key = filing.key(op, place.session())
        slots = place.read(key, self._left(job))
        if slots is None:
            return _Outcome(ok=False, reason="no longer held")
        outcome, wrong = _Outcome(ok=False), False
        if self._begin_copy():
            bad = self._scatter(op, filing.identities(op), slots)
            self._end_copy()
            wrong = bad is not None and not is_blank(bad)
            if bad is None:
                outcome = _Outcome(ok=True, blocks=len(op.block_ids) - op.skip_blocks)
            else:
                outcome = _Outcome(ok=False, reason="seal broken" if wrong else "overwritten")
        place.unlock(key, self._dram.operation_seconds)
        place.forget(key.request_id)
        if wrong:
            log.error("a chunk in the DRAM tier is not what it is filed as: clearing the tier")
            place.clear()
        return outcome

    def _scatter(self, op: TierOp, identities: list[bytes], slots: list[Bytes]) -> Bytes | None:
        """Copy the slots into the pages; the first that was not what it should be, if any."""
        for position, (slot, identity) in enumerate(zip(slots, identities, strict=True)):
            if not names(slot, identity):
                return slot
            blocks, part = self._part(op, position, slot, op.skip_blocks)
            self._paged().scatter(blocks, part)
            if not is_whole(slot, identity):
                return slot
        return None

    def _part(
        self, op: TierOp, position: int, slot: Bytes, skip: int = 0
    ) -> tuple[list[int], Bytes]:
        """The blocks of the object at ``position``, and their bytes in its slot.

        Without those among the op's first ``skip``.
        """
        count, size = self._filings[op.part].blocks, self._block_bytes()
        first = position * count
        stop = min(first + count, len(op.block_ids))
        begin = min(max(first, skip), stop)
        return op.block_ids[begin:stop], slot[(begin - first) * size : (stop - first) * size]

    def _block_bytes(self) -> int:
        return self._paged().block_bytes

    def _paged(self) -> KVPages:
        assert self._pages is not None
        return self._pages

    def _left(self, job: Job) -> float:
        return job.deadline - self._clock()

    def _begin_copy(self) -> bool:
        with self._changed:
            begun = self._queue.begin_copy()
            self._changed.notify_all()
            return begun

    def _end_copy(self) -> None:
        with self._changed:
            self._queue.end_copy()
            self._changed.notify_all()

    def _finish(self, outcome: _Outcome) -> None:
        with self._changed:
            self._queue.finish(ok=outcome.ok, blocks=outcome.blocks, reason=outcome.reason)
            self._changed.notify_all()

    def _go_up(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS
        with self._changed:
            self._health = "up"
        log.warning("DRAM tier up")

    def _go_down(self, reason: str) -> None:
        with self._changed:
            before, self._health, self._reason = self._health, "down", reason
            self._strand(self._queue.fail_queued(reason))
        if before != "down" and not self._closing:
            log.warning("DRAM tier down: %s", reason)
