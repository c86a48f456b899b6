"""Lanes that move: a communicator for every epoch, driven by a thread of its own.

:class:`LaneSender` and :class:`LaneReceiver` join a lane's decisions (:mod:`kvstore.lane`) to a
communicator. Whoever owns the control channel calls them from one thread: ``on_message`` with what
arrives, then ``turn``, which returns what is to be sent; ``wake`` tells it from other threads that
a turn is due.

A thread and a staging ring live as long as their epoch. An epoch that is over is aborted at once,
and nothing of it arrives afterwards, but a library that cannot be interrupted keeps its thread
and ring until its own time is over: gloo for ``move_seconds`` at most, NCCL, while it connects,
until it gives up by itself. While ``LINGERING`` epochs have not let go, none is begun: whatever
the other end asks for, memory is bounded by that many staging rings and one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from kvstore.lane import Abort, Build, Limits, Move, ReceiverLane, SenderLane
from kvstore.messages import Blocks, Broken, Entry, Rendezvous, Shipment, Taken
from kvstore.transport.communicator import (
    Communicator,
    ControlStore,
    Pending,
)

LINGERING = 2
"""Epochs that may be over and still hold their thread and ring when another one begins."""

_IDLE_SECONDS = 0.5

Lane = TypeVar("Lane", SenderLane, ReceiverLane)


@dataclass(frozen=True)
class Bed:
    """What one end builds a communicator with.

    ``connect`` makes it, as rank 0 or 1, from a store both ranks reach (raises CommunicatorLost).
    A staging ring has ``slot_bytes`` on ``device`` for every shipment on the way.
    """

    connect: Callable[[ControlStore, int], Communicator]
    device: torch.device
    block_bytes: int
    slot_blocks: int
    limits: Limits

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return self.block_bytes * self.slot_blocks


@dataclass(frozen=True)
class _Built:
    epoch: int


@dataclass(frozen=True)
class Arrival:
    """A shipment whose bytes lie in the staging ring, in ``run``, until it is ``taken``."""

    shipment: Shipment
    run: torch.Tensor


@dataclass(frozen=True)
class _Moved:
    arrival: Arrival


@dataclass(frozen=True)
class _Lost:
    epoch: int
    detail: str


_Event = _Built | _Moved | _Lost | Entry


@dataclass(frozen=True)
class _Work:
    """What a mover does with runs as sender (rank 0) or receiver (rank 1)."""

    name: str
    rank: int
    begin: Callable[[Communicator, torch.Tensor], Pending]


class _Mover:
    """One epoch's communicator and staging ring, and the thread that drives them."""

    def __init__(self, epoch: int, bed: Bed, work: _Work, tell: Callable[[_Event], None]) -> None:
        self.ring = [
            torch.empty(bed.slot_bytes, dtype=torch.int8, device=bed.device)
            for _ in range(bed.limits.window)
        ]
        self._epoch = epoch
        self._bed = bed
        self._work = work
        self._tell = tell
        self.store = ControlStore(
            lambda key, value: tell(Entry(epoch, key, value)), bed.limits.build_seconds
        )
        self._shipments: queue.Queue[Shipment | None] = queue.Queue(bed.limits.window + 1)
        self._over = threading.Event()
        self._communicator: Communicator | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"kvferry-lane-{epoch}-{work.name}", daemon=True
        )

    def start(self) -> None:
        """Build the communicator, then move what is submitted."""
        self._thread.start()

    def submit(self, shipment: Shipment) -> None:
        """The next shipment; its bytes lie, or belong, in its slot."""
        self._shipments.put_nowait(shipment)

    def abort(self) -> None:
        """End it. Nothing more is moved."""
        self._over.set()
        self.store.close()
        self._shipments.put_nowait(None)  # ends the wait for the next shipment
        communicator = self._communicator
        if communicator is not None:
            communicator.abort()

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended, or ends within ``seconds``."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def run_of(self, shipment: Shipment) -> torch.Tensor:
        """Where this shipment's bytes are in the staging ring."""
        slot = self.ring[shipment.sequence % self._bed.limits.window]
        return slot[: len(shipment.blocks.digests) * self._bed.block_bytes]

    def _run(self) -> None:
        try:
            self._communicator = self._bed.connect(self.store, self._work.rank)
            if self._over.is_set():  # aborted while it connected
                self._communicator.abort()
                return
            self._tell(_Built(self._epoch))
            self._move_all(self._communicator)
        except Exception as error:  # noqa: BLE001 - the outermost loop; told to the lane
            self._tell(_Lost(self._epoch, f"{type(error).__name__}: {error}"))
        finally:
            self._communicator = None  # its sockets go now, whoever still knows this epoch

    def _move_all(self, communicator: Communicator) -> None:
        under_way: deque[tuple[Shipment, Pending]] = deque()
        while not self._over.is_set():
            shipment = self._next(wait=not under_way)
            if shipment is not None:
                pending = self._work.begin(communicator, self.run_of(shipment))
                under_way.append((shipment, pending))
            elif under_way:
                shipment, pending = under_way.popleft()
                pending.wait(time.monotonic() + self._bed.limits.move_seconds)
                if not self._over.is_set():
                    self._tell(_Moved(Arrival(shipment, self.run_of(shipment))))

    def _next(self, *, wait: bool) -> Shipment | None:
        try:
            return self._shipments.get(wait, _IDLE_SECONDS)
        except queue.Empty:
            return None


class _LaneEnd(Generic[Lane]):
    """What both ends have in common. One thread, but for what ``wake`` is for."""

    def __init__(self, lane: Lane, bed: Bed, work: _Work, wake: Callable[[], None]) -> None:
        self._lane: Lane = lane
        self._bed = bed
        self._work = work
        self._wake = wake
        self._mover: _Mover | None = None
        self._lingering: list[_Mover] = []
        # Bounded by what an epoch may tell: its entries, its shipments on the way and its two ends.
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()

    @property
    def epoch(self) -> int:
        """How many communicators this end has begun to build."""
        return self._lane.epoch

    @property
    def idle(self) -> bool:
        """Whether nothing is on the way."""
        return self._lane.idle

    def next_deadline(self) -> float | None:
        """When a turn is due, if nothing happens until then."""
        return self._lane.next_deadline()

    def take_failed(self) -> list[bytes]:
        """Transfers that ended with their epoch, since the last call."""
        return self._lane.take_failed()

    def peer_lost(self, now: float) -> None:
        """The control channel to the other end broke."""
        self._lane.peer_lost(now)
        self._obey()

    def gone(self) -> bool:
        """Whether no epoch holds a thread and a ring, or is being built."""
        self._lingering = [mover for mover in self._lingering if not mover.join(0.0)]
        return self._mover is None and not self._lingering

    def close(self, seconds: float = 5.0) -> None:
        """End the epoch, if there is one, and the threads; the other end is not told."""
        self.peer_lost(0.0)
        for mover in self._lingering:
            mover.join(seconds)
        self.gone()

    def _tell(self, event: _Event) -> None:
        self._events.put(event)
        self._wake()

    def _observe(self, now: float) -> list[Entry]:
        """Apply what the mover tells; the entries of this epoch are for the other end."""
        entries = []
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            match event:
                case Entry() if event.epoch == self._lane.epoch:
                    entries.append(event)
                case _Built():
                    self._lane.built(event.epoch, now)
                case _Moved():
                    self._moved(event.arrival)
                case _Lost():
                    self._lane.lost(event.epoch, event.detail, now)
        self._lane.expire(now)
        return entries

    def _moved(self, arrival: Arrival) -> None:
        """A shipment has left this end's part of the communicator."""

    def _obey(self) -> None:
        for command in self._lane.take_commands():
            match command:
                case Build():
                    self._build(command.epoch)
                case Move() if self._mover is not None:
                    self._mover.submit(command.shipment)
                case Abort() if self._mover is not None:
                    self._mover.abort()
                    self._lingering.append(self._mover)
                    self._mover = None

    def _build(self, epoch: int) -> None:
        if not self.gone() and len(self._lingering) >= LINGERING:
            self._tell(_Lost(epoch, f"{len(self._lingering)} earlier epochs have not let go"))
            return
        self._mover = _Mover(epoch, self._bed, self._work, self._tell)
        self._mover.start()

    def _enter(self, entry: Entry) -> None:
        if self._mover is not None and entry.epoch == self._lane.epoch:
            self._mover.store.enter(entry.key, entry.value)


class LaneSender(_LaneEnd[SenderLane]):
    """The prefill worker's end of one lane. ``epochs``: see :class:`kvstore.lane.SenderLane`."""

    def __init__(
        self, bed: Bed, wake: Callable[[], None], epochs: Iterator[int] | None = None
    ) -> None:
        work = _Work("send", 0, lambda communicator, run: communicator.send(run))
        super().__init__(SenderLane(bed.limits, epochs), bed, work, wake)

    def on_message(self, message: Taken | Broken | Entry, now: float) -> None:
        """What the receiver says."""
        match message:
            case Taken():
                self._lane.on_taken(message, now)
            case Broken():
                self._lane.on_broken(message, now)
            case Entry():
                self._enter(message)
        self._obey()

    def slot(self, now: float) -> torch.Tensor | None:
        """Where the next shipment's blocks go; None: not now. Asking begins an epoch, if need be.

        Write it before ``send``, and only then.
        """
        self._lane.want(now)
        self._obey()
        slot = self._lane.slot()
        return None if slot is None or self._mover is None else self._mover.ring[slot]

    def send(self, blocks: Blocks, now: float) -> None:
        """These lie in ``slot()``: send them after all before. Raises ValueError without a slot."""
        self._lane.ship(blocks, now)
        self._obey()

    def turn(self, now: float) -> list[Rendezvous | Shipment | Broken | Entry]:
        """Do what is due; what the receiver is to be told, in order."""
        entries = self._observe(now)
        self._obey()
        return [*self._lane.take_outgoing(), *entries]


class LaneReceiver(_LaneEnd[ReceiverLane]):
    """The decode worker's end of one lane.

    Whoever owns it takes every arrival with ``receive``, places it or not, and then says ``taken``.
    """

    def __init__(self, bed: Bed, wake: Callable[[], None]) -> None:
        work = _Work("receive", 1, lambda communicator, run: communicator.receive(run))
        super().__init__(ReceiverLane(bed.limits, bed.slot_blocks), bed, work, wake)
        # Bounded by the window: what has not been taken is on the way.
        self._arrivals: deque[Arrival] = deque()

    def receive(self) -> Arrival | None:
        """The next shipment that has come in the epoch that stands; None when there is none."""
        while self._arrivals:
            arrival = self._arrivals.popleft()
            if arrival.shipment.epoch == self._lane.epoch and self._lane.state == "open":
                return arrival
        return None

    def taken(self, shipment: Shipment, now: float) -> None:
        """Its run is no longer read. May be said again."""
        self._lane.taken(shipment.epoch, shipment.sequence, now)

    def on_message(self, message: Rendezvous | Shipment | Broken | Entry, now: float) -> None:
        """What the sender says."""
        match message:
            case Rendezvous():
                self._lane.on_rendezvous(message, now)
            case Shipment():
                self._lane.on_shipment(message, now)
            case Broken():
                self._lane.on_broken(message, now)
            case Entry():
                self._enter(message)
        self._obey()

    def turn(self, now: float) -> list[Taken | Broken | Entry]:
        """Do what is due; what the sender is to be told, in order."""
        entries = self._observe(now)
        self._obey()
        return [*self._lane.take_outgoing(), *entries]

    def _moved(self, arrival: Arrival) -> None:
        self._arrivals.append(arrival)
