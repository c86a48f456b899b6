"""The DRAM tier as the rest of kvferry sees it: two small interfaces and the queue behind one.

A **tier** keeps whole chunks of ``chunk_tokens`` tokens of KV and, for models with sliding windows,
the window before a chunk's end (``tier_shape``), named by the tokens from the start of the prompt
and by the tenant's salt; nothing is kept under a salt that is nobody's or that says so. The
engine's scheduler asks it (:class:`TierLookup`), the engine's worker copies to and from it
(:class:`TierCopy`); neither ever waits for it. A tier that is down holds nothing and takes nothing;
it is back by itself.

A lookup locks what it finds, so that it stays until it is loaded::

    start ── poll: n > 0 ──┬── keep(a, b) ── the load of [a, b) unlocks it, done or dropped
                           └── end ── everything is unlocked

Whoever calls ``keep`` with a range orders its load in the same engine step: from then on the locks
on that range belong to the load.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from kvstore.salts import owner
from kvstore.tier_shape import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

Kind = Literal["store", "load"]
Health = Literal["up", "down"]


def is_kept(salt: str) -> bool:
    """Whether a tier may keep anything of this salt, and look for it."""
    whose = owner(salt)
    return whose is not None and whose.kept


@dataclass(frozen=True, slots=True)
class TierKey:
    """A request and the prompt it asks about, in its tenant's scope.

    ``names`` are those of its whole blocks (``kvstore.blockhash``); a lookup needs none.
    """

    request: str
    tokens: Sequence[int]
    salt: str
    names: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class TierOp:
    """One copy between the engine's pages and the tier.

    ``tokens`` are the prompt's from its start to ``end`` or beyond; ``start`` and ``end`` are
    multiples of the tier's chunk. ``block_ids`` are those of the chunks of ``[start, end)``, or of
    the window before ``end`` (``start`` is then one chunk before), in the order ``TierShape``
    gives. A load leaves the pages of the first ``skip_blocks`` of them untouched. ``names`` joins
    those of the blocks of ``[start, end)``; a load needs none.
    """

    op: int
    request: str
    tokens: Sequence[int]
    salt: str
    start: int
    end: int
    block_ids: list[int]
    skip_blocks: int = 0
    part: Part = "chunks"
    names: bytes = b""


@dataclass(frozen=True, slots=True)
class TierResult:
    """How an op ended; each op has exactly one. ``blocks``: how many it has copied."""

    op_id: int
    request: str
    kind: Kind
    ok: bool
    blocks: int
    reason: str | None


class TierLookup(Protocol):
    """What the tier holds. In the engine's scheduler process; no method waits for anything."""

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one chunk; 0: there is no tier."""

    def start(self, key: TierKey) -> None:
        """Begin to look up a prompt and lock what is found. Once per request until ``end``."""

    def poll(self, request: str) -> int | None:
        """Tokens from the prompt's start after which it can be resumed; None: not known yet.

        A multiple of the chunk: all chunks before it are held and, where windows are needed, the
        one before it. 0 is final: nothing is held, the tier is down or took too long.
        """

    def keep(self, request: str, start: int, end: int) -> None:
        """The engine will load tokens ``[start, end)``, and the window at ``end``; unlock the rest.

        ``end`` is what ``poll`` said, or the range is empty.
        """

    def end(self, request: str) -> None:
        """The request is over: unlock what is still locked. May be repeated."""

    def close(self) -> None:
        """Unlock everything and stop."""


class TierCopy(Protocol):
    """Copies between KV pages and the tier. In the engine's worker process."""

    def attach(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """These are the pages; returns at once. Raises ConfigError when they cannot be copied."""

    def store(self, op: TierOp) -> None:
        """Order a store; the pages are complete and stay so until its result or ``withdraw``."""

    def load(self, op: TierOp) -> None:
        """Order a load of what ``TierLookup.keep`` kept."""

    def withdraw(self, request: str) -> None:
        """Once this returns, no page of the request is read or written by the tier any more.

        What had not begun is dropped and reported so.
        """

    def drain(self) -> list[TierResult]:
        """Results since the last call, each exactly once."""

    def status(self) -> Health:
        """Whether copies can succeed now."""

    def close(self) -> None:
        """Stop. Ops that have not ended are reported as failed."""


class NoLookup:
    """The lookups of a cluster without a DRAM tier."""

    chunk_tokens = 0

    def start(self, key: TierKey) -> None:
        return

    def poll(self, request: str) -> int | None:
        return 0

    def keep(self, request: str, start: int, end: int) -> None:
        return

    def end(self, request: str) -> None:
        return

    def close(self) -> None:
        return


class NoCopy:
    """The copies of a cluster without a DRAM tier: every op fails at once."""

    def __init__(self) -> None:
        self._queue = OpQueue(limit=1)

    def attach(self, kv_caches: dict[str, torch.Tensor]) -> None:
        return

    def store(self, op: TierOp) -> None:
        self._queue.refuse("store", op, "no DRAM tier")

    def load(self, op: TierOp) -> None:
        self._queue.refuse("load", op, "no DRAM tier")

    def withdraw(self, request: str) -> None:
        return

    def drain(self) -> list[TierResult]:
        return self._queue.drain()

    def status(self) -> Health:
        return "down"

    def close(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Job:
    """A queued op; ``deadline`` is on the queue owner's clock."""

    kind: Kind
    op: TierOp
    deadline: float


class Stage(enum.Enum):
    """Where the running job stands; only COPYING touches the engine's pages."""

    PREPARING = enum.auto()
    COPYING = enum.auto()
    SETTLING = enum.auto()


class OpQueue:
    """Ops in order, at most one running, and their results. Pure; its owner locks it.

    ::

        submit ─▶ queued ── take ─▶ PREPARING ── begin_copy ─▶ COPYING ── end_copy ─▶ SETTLING
                    │                   │                                                 │
                 withdraw            abandon (never copies)                             finish

    Loads go before stores: somebody waits for them. Every submitted or refused op has exactly one
    result in ``drain``. Once ``withdraw`` has been called and ``touches`` is False, no page of
    that request is touched by an op submitted before.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queued: dict[Kind, deque[Job]] = {"load": deque(), "store": deque()}
        self._results: list[TierResult] = []
        self._running: Job | None = None
        self._stage = Stage.PREPARING
        self._abandoned = False

    @property
    def busy(self) -> bool:
        """Whether a job has been taken and not finished."""
        return self._running is not None

    def __len__(self) -> int:
        return sum(map(len, self._queued.values()))

    def submit(self, kind: Kind, op: TierOp, deadline: float) -> bool:
        """Queue an op. False: the queue is full, and the op has failed."""
        if len(self) >= self._limit:
            self.refuse(kind, op, "queue full")
            return False
        self._queued[kind].append(Job(kind, op, deadline))
        return True

    def refuse(self, kind: Kind, op: TierOp, reason: str) -> None:
        """The op fails without having been queued."""
        self._results.append(TierResult(op.op, op.request, kind, ok=False, blocks=0, reason=reason))

    def take(self) -> Job | None:
        """The next job, now running; None when there is none."""
        if self._running is not None:
            raise ValueError("one op at a time: the last one has not been finished")
        for queue in self._queued.values():
            if queue:
                self._running, self._stage, self._abandoned = (
                    queue.popleft(),
                    Stage.PREPARING,
                    False,
                )
                return self._running
        return None

    def begin_copy(self) -> bool:
        """May the running job touch its pages now? If so, until ``end_copy``."""
        self._require(Stage.PREPARING)
        if self._abandoned:
            return False
        self._stage = Stage.COPYING
        return True

    def end_copy(self) -> None:
        """The running job has touched its pages for the last time."""
        self._require(Stage.COPYING)
        self._stage = Stage.SETTLING

    def finish(self, *, ok: bool, blocks: int = 0, reason: str | None = None) -> None:
        """The running job is over."""
        job = self._running
        if job is None:
            raise ValueError("no op is running")
        self._running = None
        if not self._abandoned:
            op = job.op
            self._results.append(TierResult(op.op, op.request, job.kind, ok, blocks, reason))

    def withdraw(self, request: str) -> list[Job]:
        """Drop the request's queued ops, which fail; returns them. See ``touches``."""
        return self._drop(lambda job: job.op.request == request, "withdrawn")

    def fail_queued(self, reason: str) -> list[Job]:
        """Drop all queued ops, which fail; returns them."""
        return self._drop(lambda job: True, reason)

    def abandon(self, request: str) -> None:
        """If the running job is the request's and still PREPARING, it fails and never copies."""
        if self.runs(request) and self._stage is Stage.PREPARING and not self._abandoned:
            assert self._running is not None
            self.refuse(self._running.kind, self._running.op, "withdrawn")
            self._abandoned = True

    def runs(self, request: str) -> bool:
        """Whether the running job is the request's."""
        return self._running is not None and self._running.op.request == request

    def touches(self, request: str) -> bool:
        """Whether the running job touches, or may yet touch, pages of the request."""
        if not self.runs(request) or self._stage is Stage.SETTLING:
            return False
        return self._stage is Stage.COPYING or not self._abandoned

    def drain(self) -> list[TierResult]:
        """Results since the last call."""
        results, self._results = self._results, []
        return results

    def _drop(self, chosen: Callable[[Job], bool], reason: str) -> list[Job]:
        dropped = []
        for kind, queue in self._queued.items():
            dropped += [job for job in queue if chosen(job)]
            self._queued[kind] = deque(job for job in queue if not chosen(job))
        for job in dropped:
            self.refuse(job.kind, job.op, reason)
        return dropped

    def _require(self, stage: Stage) -> None:
        if self._running is None or self._stage is not stage:
            raise ValueError(f"the running op is not {stage.name.lower()}")
