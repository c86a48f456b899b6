"""The sending end of transfers: what a prefill rank has, owes and may send now. No I/O.

The life of a transfer is drawn in :mod:`kvstore.transfer`.
"""

from __future__ import annotations

import hmac
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvstore.errors import LayoutMismatch
from kvstore.layout import KVLayout, Place
from kvstore.messages import (
    MAX_DETAIL_BYTES,
    PROTOCOL_VERSION,
    Cancel,
    Carriage,
    Failed,
    FailReason,
    Ready,
    Received,
)
from kvstore.transfer import Prompt, ready_mac

WINDOWS_OF_ONE = 4
"""How many transfers' windows one receiver may have on the way in all."""

TOMBSTONES = 4096
"""Ended transfers remembered, so that a late Ready is refused at once instead of waiting."""


EARLY_SECONDS = 300.0
"""How long at most a receiver may hold a place for a prompt that is not taken up."""

Room = Callable[[Carriage, bytes, int], int]
"""How many blocks could leave now, carried so, to this receiver; the last: how many are on the way
to it."""


@dataclass(frozen=True)
class Batch:
    """Blocks to send next: positions ``first …`` of a group, found in the pages of ``block_ids``.

    ``carriage`` "pages": the receiver reads them there, so they stay until it has them. "bulk":
    they go by its connection ``route``.
    """

    transfer: bytes
    peer: bytes
    carriage: Carriage
    route: bytes
    group: int
    first: int
    block_ids: tuple[int, ...]

    @property
    def name(self) -> tuple[bytes, int, int]:
        """What tells its first block from all others: transfer, group, position."""
        return self.transfer, self.group, self.first


@dataclass
class _Outbound:
    lease_until: float
    prompt: Prompt | None = None
    stop: int = 0
    peer: bytes | None = None
    ready: Ready | None = None
    pages: dict[Place, int] = field(default_factory=dict)
    next: list[int] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    closed: bool = False

    @property
    def under_way(self) -> int:
        """Blocks sent and not yet acknowledged."""
        return sum(self.next) - sum(self.acked)

    def lacks(self) -> bool:
        """Whether something that is wanted has neither been sent nor supplied."""
        assert self.ready is not None
        return any(
            (group, at) not in self.pages
            for group, first in enumerate(self.next)
            for at in range(first, self.ready.stop)
        )

    def over(self) -> bool:
        """Whether the pages are no longer needed."""
        assert self.ready is not None
        done = self.acked if self.ready.carriage == "pages" else self.next
        return all(through >= self.ready.stop for through in done)


class SenderCore:
    """All transfers of one prefill rank. Not thread-safe.

    ``take_settled`` names each opened transfer exactly once: from then on none of its pages will
    be read. ``take_replies`` are messages for peers.
    """

    def __init__(
        self, generation: str, layout: KVLayout, key: bytes, *, window: int, limit: int
    ) -> None:
        self._generation = generation
        self._layout = layout
        self._key = key
        self._window = window
        self._limit = limit
        self._live: OrderedDict[bytes, _Outbound] = OrderedDict()
        self._gone: OrderedDict[bytes, FailReason] = OrderedDict()
        self._replies: list[tuple[bytes, Failed]] = []
        self._settled: list[bytes] = []
        self._earliest = math.inf  # no lease ends before
        self._under_way: Counter[bytes] = Counter()

    # -- from the engine

    def open(
        self, transfer: bytes, prompt: Prompt, lease_until: float, stop: int | None = None
    ) -> None:
        """The engine has taken up the prompt; its pages stay readable until it is settled.

        Its blocks before ``stop`` are to be supplied; None: all of them.
        """
        outbound = self._live.setdefault(transfer, _Outbound(lease_until))
        if transfer in self._gone:
            self._end(transfer, None)
            return
        outbound.prompt = prompt
        outbound.stop = prompt.blocks if stop is None else stop
        outbound.lease_until = max(outbound.lease_until, lease_until)
        self._earliest = min(self._earliest, outbound.lease_until)
        if outbound.ready is not None:
            self._start(transfer, outbound)

    def supply(self, transfer: bytes, pages: Mapping[Place, int]) -> None:
        """Pages whose KV is complete. What was shipped is not repeated."""
        outbound = self._live.get(transfer)
        if outbound is None:
            return
        if next_of := outbound.next:
            groups = len(next_of)
            outbound.pages.update(
                (place, page)
                for place, page in pages.items()
                if place[0] < groups and place[1] >= next_of[place[0]]
            )
        else:
            outbound.pages.update(pages)

    def withdraw(self, transfer: bytes) -> None:
        """The engine takes its pages back (preemption); it will supply them again.

        A receiver that reads pages itself may still read those it was told of: their digests then
        tell it what it read.
        """
        if outbound := self._live.get(transfer):
            outbound.pages.clear()

    def close(self, transfer: bytes) -> None:
        """The engine is through with the prompt: what has not been supplied never will be."""
        if transfer in self._gone:
            return
        outbound = self._live.setdefault(transfer, _Outbound(0.0))
        outbound.closed = True
        if not self._computed(outbound):
            self._fail(transfer, "prefill-failed", "the prompt was not computed to its end")

    # -- from the wire and the clock

    def on_ready(self, peer: bytes, ready: Ready, now: float) -> None:
        """A receiver has reserved memory. A refusal is answered, a repetition has no effect."""
        transfer = ready.transfer
        if transfer in self._gone:
            self._refuse(peer, transfer, self._gone[transfer], "this transfer has ended")
            return
        if problem := self._unacceptable(ready):
            self._refuse(peer, transfer, *problem)
            return
        outbound = self._live.get(transfer)
        if outbound is None:
            if len(self._live) >= self._limit:
                self._refuse(peer, transfer, "overloaded", f"{self._limit} transfers are open")
                return
            patience = min(ready.ttl_ms / 1000, EARLY_SECONDS)
            outbound = self._live[transfer] = _Outbound(now + patience)
            self._earliest = min(self._earliest, outbound.lease_until)
        if outbound.ready is not None:
            if (outbound.peer, outbound.ready) != (peer, ready):
                self._refuse(peer, transfer, "protocol", "this transfer has a receiver already")
            return
        outbound.peer, outbound.ready = peer, ready
        if outbound.prompt is not None:
            self._start(transfer, outbound)

    def on_received(self, peer: bytes, message: Received) -> None:
        """The receiver has written everything of a group below ``through``."""
        outbound = self._live.get(message.transfer)
        if outbound is None or outbound.peer != peer or message.group >= len(outbound.next):
            return
        group = message.group
        if outbound.acked[group] < message.through <= outbound.next[group]:
            self._under_way[peer] -= message.through - outbound.acked[group]
            outbound.acked[group] = message.through
            self._end_if_over(message.transfer, outbound)

    def on_cancel(self, peer: bytes, message: Cancel) -> None:
        """The receiver wants no more."""
        outbound = self._live.get(message.transfer)
        if outbound and outbound.peer == peer:
            self._end(message.transfer, "abandoned")

    def peer_lost(self, peer: bytes) -> None:
        """The receiver's connection is gone; nothing can be sent to it any more."""
        for transfer in [t for t, o in self._live.items() if o.peer == peer]:
            self._end(transfer, "peer-lost")

    def expire(self, now: float) -> None:
        """End every transfer whose lease is over."""
        if now < self._earliest:
            return
        for transfer in [t for t, o in self._live.items() if o.lease_until <= now]:
            self._fail(transfer, "lease-expired", "the lease on the prompt's KV ended")
        self._earliest = min((o.lease_until for o in self._live.values()), default=math.inf)

    # -- to the wire and the engine

    def next_batch(self, room: Room) -> Batch | None:
        """Consecutive blocks that may go now, as many as there is room for; fairest first."""
        for transfer, outbound in self._live.items():
            ready, peer = outbound.ready, outbound.peer
            if not outbound.pages or not outbound.next or ready is None or peer is None:
                continue
            most = min(
                room(ready.carriage, peer, self._under_way[peer]),
                self._window - outbound.under_way,
                WINDOWS_OF_ONE * self._window - self._under_way[peer],
            )
            for group, first in enumerate(outbound.next):
                if ids := _run(outbound.pages, group, range(first, min(first + most, ready.stop))):
                    self._live.move_to_end(transfer)
                    return Batch(transfer, peer, ready.carriage, ready.route, group, first, ids)
        return None

    def sent(self, batch: Batch) -> None:
        """The batch's bytes have left the pages, or the receiver has been told where they lie."""
        outbound = self._live.get(batch.transfer)
        if outbound is None or outbound.next[batch.group] != batch.first:
            return
        outbound.next[batch.group] += len(batch.block_ids)
        self._under_way[batch.peer] += len(batch.block_ids)
        for at in range(batch.first, outbound.next[batch.group]):
            outbound.pages.pop((batch.group, at), None)
        self._end_if_over(batch.transfer, outbound)

    def take_replies(self) -> list[tuple[bytes, Failed]]:
        """Messages for peers since the last call."""
        replies, self._replies = self._replies, []
        return replies

    def any_settled(self) -> bool:
        """Whether ``take_settled`` would name any."""
        return bool(self._settled)

    def take_settled(self) -> list[bytes]:
        """Transfers whose pages are no longer needed, since the last call."""
        settled, self._settled = self._settled, []
        return settled

    def live(self) -> int:
        """Transfers not yet ended."""
        return len(self._live)

    # -- inside

    def _unacceptable(self, ready: Ready) -> tuple[FailReason, str] | None:
        if ready.version != PROTOCOL_VERSION:
            return "protocol", f"protocol {ready.version} there, {PROTOCOL_VERSION} here"
        if ready.sender_generation != self._generation:
            return "stale-generation", "this worker has restarted since the plan was made"
        try:
            self._layout.require(ready.fingerprint, ready.layout)
        except LayoutMismatch as error:
            return "layout-mismatch", str(error)
        return None

    def _computed(self, outbound: _Outbound) -> bool:
        """Whether all was supplied that was to be, or that its receiver wants."""
        if outbound.prompt is None:
            return False
        if outbound.next:
            return not outbound.lacks()
        last = outbound.stop - 1
        return all((group, last) in outbound.pages for group in range(len(self._layout.groups)))

    def _start(self, transfer: bytes, outbound: _Outbound) -> None:
        ready, prompt = outbound.ready, outbound.prompt
        assert ready is not None
        assert prompt is not None
        if not hmac.compare_digest(ready.mac, ready_mac(self._key, ready, prompt)):
            self._fail(transfer, "not-authentic", "the receiver does not hold this prompt")
            return
        bounds = (*ready.first, ready.stop)
        if (
            ready.blocks != prompt.blocks
            or max(bounds) > prompt.blocks
            or max(bounds) > ready.stop
            or len(ready.first) != len(self._layout.groups)
        ):
            self._fail(transfer, "protocol", "the receiver counts blocks differently")
            return
        outbound.next, outbound.acked = list(ready.first), list(ready.first)
        for group, at in list(outbound.pages):
            if group >= len(ready.first) or not ready.first[group] <= at < ready.stop:
                del outbound.pages[group, at]
        if outbound.closed and outbound.lacks():
            self._fail(transfer, "prefill-failed", "the prompt was not computed to its end")
        else:
            self._end_if_over(transfer, outbound)

    def _end_if_over(self, transfer: bytes, outbound: _Outbound) -> None:
        if outbound.over():
            self._end(transfer, None)

    def _fail(self, transfer: bytes, reason: FailReason, detail: str) -> None:
        outbound = self._live[transfer]
        if outbound.peer is not None:
            self._refuse(outbound.peer, transfer, reason, detail)
        self._end(transfer, reason)

    def _refuse(self, peer: bytes, transfer: bytes, reason: FailReason, detail: str) -> None:
        self._replies.append((peer, Failed(transfer, reason, _cut(detail))))

    def _end(self, transfer: bytes, reason: FailReason | None) -> None:
        outbound = self._live.pop(transfer)
        if outbound.peer is not None:
            self._under_way[outbound.peer] -= outbound.under_way
            if not self._under_way[outbound.peer]:
                del self._under_way[outbound.peer]
        if outbound.prompt is not None or transfer in self._gone:
            self._settled.append(transfer)
        self._gone[transfer] = reason or "unknown-transfer"
        while len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)


def _run(pages: Mapping[Place, int], group: int, positions: range) -> tuple[int, ...]:
    """The pages of the unbroken run of ``positions`` that have been supplied."""
    ids: list[int] = []
    for at in positions:
        page = pages.get((group, at))
        if page is None:
            break
        ids.append(page)
    return tuple(ids)


def _cut(detail: str) -> str:
    """As much of it as a message takes, which is counted in bytes."""
    return detail.encode()[:MAX_DETAIL_BYTES].decode(errors="ignore")
