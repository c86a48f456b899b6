"""The sending end of transfers: what a prefill rank has, owes and may send now. No I/O.

The life of a transfer is drawn in :mod:`kvstore.transfer`.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvstore.errors import LayoutMismatch
from kvstore.layout import KVLayout
from kvstore.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Failed,
    FailReason,
    Ready,
    Received,
)
from kvstore.transfer import Prompt, ready_mac

TOMBSTONES = 4096
"""Ended transfers remembered, so that a late Ready is refused at once instead of waiting."""


@dataclass(frozen=True)
class Batch:
    """Blocks to send next: positions ``first …``, found in the pages of ``block_ids``."""

    transfer: bytes
    peer: bytes
    first: int
    block_ids: tuple[int, ...]


@dataclass
class _Outbound:
    lease_until: float
    prompt: Prompt | None = None
    peer: bytes | None = None
    ready: Ready | None = None
    pages: dict[int, int] = field(default_factory=dict)
    next: int = 0
    acked: int = 0

    @property
    def shipping(self) -> bool:
        return self.prompt is not None and self.ready is not None


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

    # -- from the engine

    def open(self, transfer: bytes, prompt: Prompt, lease_until: float) -> None:
        """The engine has taken up the prompt; its pages stay readable until it is settled."""
        outbound = self._live.setdefault(transfer, _Outbound(lease_until))
        if transfer in self._gone:
            self._end(transfer, None)
            return
        outbound.prompt = prompt
        outbound.lease_until = max(outbound.lease_until, lease_until)
        if outbound.ready is not None:
            self._start(transfer, outbound)

    def supply(self, transfer: bytes, pages: Mapping[int, int]) -> None:
        """Pages (position to block id) whose KV is complete. What was shipped is not repeated."""
        if outbound := self._live.get(transfer):
            outbound.pages.update((at, page) for at, page in pages.items() if at >= outbound.next)

    def withdraw(self, transfer: bytes) -> None:
        """The engine takes its pages back (preemption); it will supply them again."""
        if outbound := self._live.get(transfer):
            outbound.pages.clear()

    def close(self, transfer: bytes) -> None:
        """The engine is through with the prompt: what has not been supplied never will be."""
        if transfer in self._gone:
            return
        outbound = self._live.setdefault(transfer, _Outbound(0.0))
        blocks = outbound.prompt.blocks if outbound.prompt else None
        if blocks is None or set(range(outbound.next, blocks)) - outbound.pages.keys():
            self._fail(transfer, "prefill-failed", "the prompt was not computed to its end")

    # -- from the wire and the clock

    def on_ready(self, peer: bytes, ready: Ready, now: float) -> None:
        """A receiver has reserved memory. A refusal is answered, never dropped."""
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
            outbound = self._live[transfer] = _Outbound(now + ready.ttl_ms / 1000)
        if outbound.ready is not None:
            self._refuse(peer, transfer, "protocol", "this transfer has a receiver already")
            return
        outbound.peer, outbound.ready = peer, ready
        if outbound.prompt is not None:
            self._start(transfer, outbound)

    def on_received(self, peer: bytes, message: Received) -> None:
        """The receiver has written everything below ``through``."""
        outbound = self._live.get(message.transfer)
        if outbound and outbound.peer == peer and message.through <= outbound.next:
            outbound.acked = max(outbound.acked, message.through)

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
        for transfer in [t for t, o in self._live.items() if o.lease_until <= now]:
            self._fail(transfer, "lease-expired", "the lease on the prompt's KV ended")

    # -- to the wire and the engine

    def next_batch(self, limit: int) -> Batch | None:
        """Up to ``limit`` consecutive blocks of one transfer that may go now, fairest first."""
        for transfer, outbound in self._live.items():
            room = min(limit, self._window - (outbound.next - outbound.acked))
            ids = _run(outbound.pages, outbound.next, room) if outbound.shipping else ()
            if ids and outbound.peer is not None:
                self._live.move_to_end(transfer)
                return Batch(transfer, outbound.peer, outbound.next, ids)
        return None

    def sent(self, batch: Batch) -> None:
        """The batch's bytes have left the pages. The last one settles the transfer."""
        outbound = self._live.get(batch.transfer)
        if outbound is None or outbound.next != batch.first:
            return
        outbound.next += len(batch.block_ids)
        for position in range(batch.first, outbound.next):
            outbound.pages.pop(position, None)
        if outbound.prompt is not None and outbound.next >= outbound.prompt.blocks:
            self._end(batch.transfer, None)

    def take_replies(self) -> list[tuple[bytes, Failed]]:
        """Messages for peers since the last call."""
        replies, self._replies = self._replies, []
        return replies

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

    def _start(self, transfer: bytes, outbound: _Outbound) -> None:
        ready, prompt = outbound.ready, outbound.prompt
        assert ready is not None
        assert prompt is not None
        if not hmac.compare_digest(ready.mac, ready_mac(self._key, ready, prompt)):
            self._fail(transfer, "not-authentic", "the receiver does not hold this prompt")
        elif ready.blocks != prompt.blocks or ready.first > prompt.blocks:
            self._fail(transfer, "protocol", "the receiver counts blocks differently")
        elif ready.first == prompt.blocks:
            self._end(transfer, None)
        else:
            outbound.next = outbound.acked = ready.first
            for position in [at for at in outbound.pages if at < ready.first]:
                del outbound.pages[position]

    def _fail(self, transfer: bytes, reason: FailReason, detail: str) -> None:
        outbound = self._live[transfer]
        if outbound.peer is not None:
            self._refuse(outbound.peer, transfer, reason, detail)
        self._end(transfer, reason)

    def _refuse(self, peer: bytes, transfer: bytes, reason: FailReason, detail: str) -> None:
        self._replies.append((peer, Failed(transfer, reason, detail[:1024])))

    def _end(self, transfer: bytes, reason: FailReason | None) -> None:
        outbound = self._live.pop(transfer)
        if outbound.prompt is not None or transfer in self._gone:
            self._settled.append(transfer)
        self._gone[transfer] = reason or "unknown-transfer"
        while len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)


def _run(pages: Mapping[int, int], first: int, limit: int) -> tuple[int, ...]:
    ids: list[int] = []
    while len(ids) < limit and first + len(ids) in pages:
        ids.append(pages[first + len(ids)])
    return tuple(ids)
