"""The receiving end of transfers: what a decode rank awaits and where it belongs. No I/O.

The life of a transfer is drawn in :mod:`kvstore.transfer`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from kvstore.messages import Blocks, Cancel, Failed, FailReason, Received

GIVEN_UP = 1024
"""Transfers remembered that were abandoned before they began."""


@dataclass(frozen=True)
class Reservation:
    """Memory the engine holds for a transfer: ``block_ids[i]`` is for position ``first + i``."""

    transfer: bytes
    peer: str
    sender_generation: str
    first: int
    block_ids: tuple[int, ...]
    deadline: float


@dataclass(frozen=True)
class Placement:
    """Where the blocks of one message belong, once their digests have been found right."""

    transfer: bytes
    first: int
    block_ids: tuple[int, ...]
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class Ended:
    """A transfer is over, since ``at``. ``reason`` is None when every block is in place."""

    transfer: bytes
    reason: FailReason | None
    detail: str
    received_blocks: int
    at: float


@dataclass
class _Inbound:
    reservation: Reservation
    next: int


class ReceiverCore:
    """All transfers of one decode rank. Not thread-safe.

    ``take_ended`` names each begun transfer exactly once, and no placement of it is handed out
    afterwards.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._live: dict[bytes, _Inbound] = {}
        self._outgoing: list[tuple[str, Received | Cancel]] = []
        self._ended: list[Ended] = []
        self._given_up: OrderedDict[bytes, None] = OrderedDict()

    def begin(self, reservation: Reservation, now: float) -> None:
        """Memory is reserved; blocks may come. Nothing to fetch ends it at once."""
        if reservation.transfer in self._live:
            raise ValueError("this transfer is being received already")
        self._live[reservation.transfer] = _Inbound(reservation, reservation.first)
        if not reservation.block_ids:
            self._end(reservation.transfer, None, "", now)
        elif reservation.transfer in self._given_up:
            self.abandon(reservation.transfer, now)

    def accept(
        self, peer: str, message: Blocks, payload_bytes: int, now: float
    ) -> Placement | None:
        """Where these blocks go; None for what has no effect (unknown, stale, repeated).

        Blocks out of order or of the wrong size end the transfer: what follows cannot be right.
        """
        inbound = self._live.get(message.transfer)
        if inbound is None or not self._from_sender(inbound, peer, message):
            return None
        wanted, count = inbound.reservation, len(message.digests)
        if message.first < inbound.next:
            return None
        end = wanted.first + len(wanted.block_ids)
        if message.first > inbound.next or message.first + count > end:
            self._fail(message.transfer, "protocol", "blocks out of order", now)
            return None
        if payload_bytes != count * self._block_bytes:
            self._fail(message.transfer, "protocol", f"{count} blocks in {payload_bytes} B", now)
            return None
        at = message.first - wanted.first
        ids = wanted.block_ids[at : at + count]
        return Placement(message.transfer, message.first, ids, message.digests)

    def placed(self, placement: Placement, now: float) -> None:
        """These blocks are written. The last one completes the transfer."""
        inbound = self._live.get(placement.transfer)
        if inbound is None:
            return
        inbound.next = placement.first + len(placement.block_ids)
        wanted = inbound.reservation
        self._outgoing.append((wanted.peer, Received(placement.transfer, inbound.next)))
        if inbound.next == wanted.first + len(wanted.block_ids):
            self._end(placement.transfer, None, "", now)

    def corrupt(self, placement: Placement, position: int, now: float) -> None:
        """A digest did not match: wrong KV is never used."""
        detail = f"block {position} arrived damaged"
        self._fail(placement.transfer, "digest-mismatch", detail, now)

    def on_failed(self, peer: str, message: Failed, now: float) -> None:
        """The sender gave up."""
        inbound = self._live.get(message.transfer)
        if inbound and inbound.reservation.peer == peer:
            self._end(message.transfer, message.reason, message.detail, now)

    def peer_lost(self, peer: str, now: float) -> None:
        """A sender's connection is gone, and with it all its transfers."""
        for transfer in [t for t, i in self._live.items() if i.reservation.peer == peer]:
            self._end(transfer, "peer-lost", f"lost the connection to {peer}", now)

    def abandon(self, transfer: bytes, now: float) -> None:
        """Nobody will send this any more, or nobody wants it; also if it has not begun yet."""
        if transfer in self._live:
            self._fail(transfer, "abandoned", "the prefill leg ended", now)
            return
        self._given_up[transfer] = None
        while len(self._given_up) > GIVEN_UP:
            self._given_up.popitem(last=False)

    def expire(self, now: float) -> None:
        """End every transfer whose deadline has passed."""
        for transfer in [t for t, i in self._live.items() if i.reservation.deadline <= now]:
            self._fail(transfer, "deadline", "the KV did not come in time", now)

    def take_outgoing(self) -> list[tuple[str, Received | Cancel]]:
        """Messages for senders since the last call."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_ended(self) -> list[Ended]:
        """Transfers that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def next_deadline(self) -> float | None:
        """When ``expire`` has something to do next."""
        return min((i.reservation.deadline for i in self._live.values()), default=None)

    def live(self) -> int:
        """Transfers not yet ended."""
        return len(self._live)

    @staticmethod
    def _from_sender(inbound: _Inbound, peer: str, message: Blocks) -> bool:
        wanted = inbound.reservation
        return wanted.peer == peer and wanted.sender_generation == message.sender_generation

    def _fail(self, transfer: bytes, reason: FailReason, detail: str, now: float) -> None:
        self._outgoing.append((self._live[transfer].reservation.peer, Cancel(transfer)))
        self._end(transfer, reason, detail, now)

    def _end(self, transfer: bytes, reason: FailReason | None, detail: str, now: float) -> None:
        inbound = self._live.pop(transfer)
        received = inbound.next - inbound.reservation.first
        self._ended.append(Ended(transfer, reason, detail, received, now))
