"""One pair's order of shipments over a two-rank communicator, and what a loss ends. No I/O.

A communicator (NCCL between GPUs) moves bytes between two ranks, in the order in which both call
it, and hangs or dies as a whole. So the sender decides one total order of **shipments**
(consecutive blocks of one transfer) and announces each on the control channel; the receiver
receives in that order. A **lane** is that order in one direction between one pair of workers::

    sender                                  receiver
      Rendezvous(epoch) ────────────────────▶        both build the communicator of this epoch
      ◀──────────────────────────────── Entry*        what they must know of each other to do so
      Entry* ────────────────────────────────▶
      Shipment(0), Shipment(1), … ───────────▶        announced; the bytes follow in this order
      ◀──────────────────────────────── Taken*        out of the staging ring; opens the window
      ◀──────────── Broken(epoch) ───────────▶        at any time: this communicator is over

An **epoch** is one communicator's life. Whoever sees it fail, or sees no progress in time, ends it
and says ``Broken``; every transfer with a shipment on the way has failed, and no other. The next
shipment somebody wants to send begins the next epoch; what still arrives of an earlier one has no
effect. Sequence numbers count from zero in every epoch, and a shipment's place in the staging ring
of ``window`` slots is its number modulo ``window``: the slot is free again when it is taken.

A lane lives as long as the control channel it is agreed on, which keeps order; when that breaks,
``peer_lost`` ends the epoch on both sides, and nothing sent before arrives after.

Nothing here authenticates: messages come over the control channel, which does. The communicator's
own connections are protected by the private network alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, Literal, TypeVar

from kvstore.messages import Blocks, Broken, Rendezvous, Shipment, Taken

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 16.0
"""Seconds after a loss until the next epoch may begin; doubled with every epoch that moved none."""


@dataclass(frozen=True)
class Build:
    """Build the communicator of ``epoch``; answer with ``built`` or ``lost``."""

    epoch: int


@dataclass(frozen=True)
class Move:
    """Send or receive this shipment, after all earlier ones."""

    shipment: Shipment


@dataclass(frozen=True)
class Abort:
    """End the communicator of ``epoch``, whatever it is doing."""

    epoch: int


@dataclass(frozen=True)
class Limits:
    """``window``: shipments on the way at most. Seconds to build, and for one of them to move."""

    window: int = 4
    build_seconds: float = 20.0
    move_seconds: float = 10.0


Command = Build | Move | Abort
Said = TypeVar("Said", Rendezvous | Shipment, Taken)
"""What only this end says; ``Broken`` both do."""


class _Lane(Generic[Said]):
    """What both ends of a lane have in common. Not thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.epoch = 0
        self.state: Literal["closed", "building", "open"] = "closed"
        self._limits = limits
        self._next = 0
        self._on_way: OrderedDict[int, Shipment] = OrderedDict()
        self._until: float | None = None
        self._outgoing: list[Said | Broken] = []
        self._commands: list[Command] = []
        self._failed: list[bytes] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is on the way."""
        return not self._on_way

    def built(self, epoch: int, now: float) -> None:
        """The communicator of ``epoch`` stands."""
        if epoch == self.epoch and self.state == "building":
            self.state = "open"
            self._expect(now)

    def lost(self, epoch: int, detail: str, now: float) -> None:
        """The communicator of ``epoch`` failed here: the other end is told."""
        if epoch == self.epoch and self.state != "closed":
            self._outgoing.append(Broken(epoch, detail[:1024]))
            self._end(now)

    def on_broken(self, message: Broken, now: float) -> None:
        """It failed there."""
        if message.epoch == self.epoch and self.state != "closed":
            self._end(now)

    def peer_lost(self, now: float) -> None:
        """The control channel broke, or is being closed: nothing more can be agreed on."""
        if self.state != "closed":
            self._end(now)

    def expire(self, now: float) -> None:
        """End an epoch that was not built in time, or in which nothing moves."""
        if self._until is not None and now >= self._until:
            what = "moved" if self.state == "open" else "came to stand"
            self.lost(self.epoch, f"nothing {what} in time", now)

    def next_deadline(self) -> float | None:
        """When ``expire`` has something to do, if nothing happens until then."""
        return self._until

    def take_commands(self) -> list[Command]:
        """What the communicator is to do, since the last call, in order."""
        commands, self._commands = self._commands, []
        return commands

    def take_outgoing(self) -> list[Said | Broken]:
        """Messages for the other end, since the last call, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_failed(self) -> list[bytes]:
        """Transfers that had a shipment on the way when their epoch ended, since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def _begin(self, epoch: int, now: float) -> None:
        self.epoch, self.state, self._next = epoch, "building", 0
        self._until = now + self._limits.build_seconds
        self._commands.append(Build(epoch))

    def _expect(self, now: float) -> None:
        """Whatever is on the way has to move within the time a shipment has."""
        self._until = now + self._limits.move_seconds if self._on_way else None

    def _end(self, now: float) -> None:
        self._commands.append(Abort(self.epoch))
        self._failed.extend(dict.fromkeys(one.blocks.transfer for one in self._on_way.values()))
        self._on_way.clear()
        self.state, self._until = "closed", None


class SenderLane(_Lane[Rendezvous | Shipment]):
    """The end that decides the order. ``epochs``: numbers for them, each greater than all before.

    Lanes to one receiver that follow one another take theirs from the same iterator.
    """

    def __init__(self, limits: Limits, epochs: Iterator[int] | None = None) -> None:
        super().__init__(limits)
        self._epochs = count(1) if epochs is None else epochs
        self._pause = FIRST_PAUSE
        self._not_before = 0.0

    def want(self, now: float) -> None:
        """There is something to send: begin an epoch, unless there is one or it is too soon."""
        if self.state == "closed" and now >= self._not_before:
            self._begin(next(self._epochs), now)
            self._outgoing.append(Rendezvous(self.epoch))

    def slot(self) -> int | None:
        """The slot of the staging ring the next shipment goes into; None: none may go now."""
        if self.state != "open" or len(self._on_way) >= self._limits.window:
            return None
        return self._next % self._limits.window

    def ship(self, blocks: Blocks, now: float) -> None:
        """These lie in ``slot()`` and go next. Raises ValueError where none may go."""
        if self.slot() is None:
            raise ValueError("no shipment may go now")
        shipment = Shipment(self.epoch, self._next, blocks)
        self._next += 1
        if not self._on_way:
            self._until = now + self._limits.move_seconds
        self._on_way[shipment.sequence] = shipment
        self._outgoing.append(shipment)
        self._commands.append(Move(shipment))

    def on_taken(self, message: Taken, now: float) -> None:
        """A shipment has arrived. They are taken in order; anything else ends the epoch."""
        if message.epoch != self.epoch or self.state != "open":
            return
        if message.sequence != next(iter(self._on_way), None):
            self.lost(self.epoch, f"shipment {message.sequence} taken out of order", now)
            return
        del self._on_way[message.sequence]
        self._pause = FIRST_PAUSE
        self._expect(now)

    def _end(self, now: float) -> None:
        super()._end(now)
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


class ReceiverLane(_Lane[Taken]):
    """The end that follows. ``most_blocks``: what a slot of its staging ring holds."""

    def __init__(self, limits: Limits, most_blocks: int) -> None:
        super().__init__(limits)
        self._most_blocks = most_blocks
        self._out_of_ring: set[int] = set()

    def on_rendezvous(self, message: Rendezvous, now: float) -> None:
        """The sender begins an epoch; what was before is over."""
        if message.epoch <= self.epoch:
            return
        if self.state != "closed":
            self._end(now)
        self._begin(message.epoch, now)

    def on_shipment(self, message: Shipment, now: float) -> None:
        """The sender announces a shipment. One that cannot be ends the epoch."""
        if message.epoch != self.epoch or self.state == "closed":
            return
        if message.sequence != self._next or len(self._on_way) >= self._limits.window:
            self.lost(self.epoch, f"shipment {message.sequence} is out of order", now)
        elif len(message.blocks.digests) > self._most_blocks:
            self.lost(self.epoch, f"a shipment of {len(message.blocks.digests)} blocks", now)
        else:
            self._next += 1
            self._on_way[message.sequence] = message
            self._commands.append(Move(message))
            if self.state == "open" and len(self._on_way) == 1:
                self._expect(now)

    def taken(self, epoch: int, sequence: int, now: float) -> None:
        """This shipment's bytes have left the staging ring; the sender hears of it in order."""
        if epoch != self.epoch or sequence not in self._on_way:
            return
        self._out_of_ring.add(sequence)
        for oldest in list(self._on_way):
            if oldest not in self._out_of_ring:
                break
            self._out_of_ring.remove(oldest)
            del self._on_way[oldest]
            self._outgoing.append(Taken(epoch, oldest))
            self._expect(now)

    def _end(self, now: float) -> None:
        super()._end(now)
        self._out_of_ring.clear()
