"""The receiving end of transfers: what a decode rank awaits and where it belongs. No I/O.

The life of a transfer is drawn in :mod:`kvstore.transfer`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from kvstore.messages import Blocks, Cancel, Failed, FailReason, Received

GIVEN_UP = 1024
"""Transfers remembered that were abandoned before they began."""


@dataclass(frozen=True)
class Reservation:
    """Memory the engine holds for a transfer.

    ``block_ids[g][i]`` is for position ``first[g] + i`` of KV group ``g``; all groups end at the
    same position.
    """

    transfer: bytes
    peer: str
    sender_generation: str
    first: tuple[int, ...]
    block_ids: tuple[tuple[int, ...], ...]
    deadline: float


@dataclass(frozen=True)
class Placement:
    """Where the blocks of one message belong, once their digests have been found right."""

    transfer: bytes
    group: int
    first: int
    block_ids: tuple[int, ...]
    digests: tuple[bytes, ...]

    @property
    def name(self) -> tuple[bytes, int, int]:
        """What tells its first block from all others: transfer, group, position."""
        return self.transfer, self.group, self.first


@dataclass(frozen=True)
class Ended:
    """A transfer is over, since ``at``. ``reason`` is None when every block is in place.

    All that was wanted below position ``through`` is; ``received_blocks`` counts all groups'.
    """

    transfer: bytes
    reason: FailReason | None
    detail: str
    received_blocks: int
    through: int
    at: float


@dataclass
class _Inbound:
    reservation: Reservation
    next: list[int]

    def ends(self) -> list[int]:
        """For each group the position behind its last."""
        wanted = self.reservation
        return [a + len(ids) for a, ids in zip(wanted.first, wanted.block_ids, strict=True)]

    def through(self) -> int:
        """The position below which all that is wanted has been written."""
        ends = self.ends()
        lacking = [at for at, end in zip(self.next, ends, strict=True) if at < end]
        return min(lacking, default=max(ends))


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
        self._earliest = math.inf  # no deadline is before

    def begin(self, reservation: Reservation, now: float) -> None:
        """Memory is reserved; blocks may come. Nothing to fetch ends it at once."""
        if reservation.transfer in self._live:
            raise ValueError("this transfer is being received already")
        self._live[reservation.transfer] = _Inbound(reservation, list(reservation.first))
        self._earliest = min(self._earliest, reservation.deadline)
        if not any(reservation.block_ids):
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
        count, group = len(message.digests), message.group
        ends = inbound.ends()
        if group >= len(ends) or message.first > inbound.next[group]:
            self._fail(message.transfer, "protocol", "blocks out of order", now)
            return None
        if message.first < inbound.next[group]:
            return None
        if message.first + count > ends[group]:
            self._fail(message.transfer, "protocol", "more blocks than were asked for", now)
            return None
        if payload_bytes != count * self._block_bytes:
            self._fail(message.transfer, "protocol", f"{count} blocks in {payload_bytes} B", now)
            return None
        at = message.first - inbound.reservation.first[group]
        ids = inbound.reservation.block_ids[group][at : at + count]
        return Placement(message.transfer, group, message.first, ids, message.digests)

    def placed(self, placement: Placement, now: float) -> None:
        """These blocks are written. The last one completes the transfer."""
        inbound = self._live.get(placement.transfer)
        if inbound is None:
            return
        through = placement.first + len(placement.block_ids)
        inbound.next[placement.group] = through
        self._tell(inbound.reservation.peer, Received(placement.transfer, placement.group, through))
        if inbound.next == inbound.ends():
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

    def peer_lost(self, peer: str, detail: str, now: float) -> None:
        """There is no way to a sender any more, which ends all its transfers."""
        for transfer in [t for t, i in self._live.items() if i.reservation.peer == peer]:
            self._end(transfer, "peer-lost", detail, now)

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
        if now < self._earliest:
            return
        for transfer in [t for t, i in self._live.items() if i.reservation.deadline <= now]:
            self._fail(transfer, "deadline", "the KV did not come in time", now)
        left = (inbound.reservation.deadline for inbound in self._live.values())
        self._earliest = min(left, default=math.inf)

    def take_outgoing(self) -> list[tuple[str, Received | Cancel]]:
        """Messages for senders since the last call."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_ended(self) -> list[Ended]:
        """Transfers that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def next_deadline(self) -> float | None:
        """Nothing ends by itself before; None when nothing is under way."""
        return self._earliest if self._live else None

    def awaits(self, peer: str) -> bool:
        """Whether any transfer of this sender's is under way."""
        return any(inbound.reservation.peer == peer for inbound in self._live.values())

    def live(self) -> int:
        """Transfers not yet ended."""
        return len(self._live)

    @staticmethod
    def _from_sender(inbound: _Inbound, peer: str, message: Blocks) -> bool:
        wanted = inbound.reservation
        return wanted.peer == peer and wanted.sender_generation == message.sender_generation

    def _tell(self, peer: str, told: Received) -> None:
        """What follows at once on an earlier word of the same group takes its place."""
        to, last = self._outgoing[-1] if self._outgoing else ("", None)
        if isinstance(last, Received):
            before, now = (to, last.transfer, last.group), (peer, told.transfer, told.group)
            if before == now:
                self._outgoing.pop()
        self._outgoing.append((peer, told))

    def _fail(self, transfer: bytes, reason: FailReason, detail: str, now: float) -> None:
        self._outgoing.append((self._live[transfer].reservation.peer, Cancel(transfer)))
        self._end(transfer, reason, detail, now)

    def _end(self, transfer: bytes, reason: FailReason | None, detail: str, now: float) -> None:
        inbound = self._live.pop(transfer)
        received = sum(inbound.next) - sum(inbound.reservation.first)
        self._ended.append(Ended(transfer, reason, detail, received, inbound.through(), now))
