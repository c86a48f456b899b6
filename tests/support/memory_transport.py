"""A transport inside one process: the real codec and the real cargo, queues for sockets.

It stands beside the others in the contract suite, and carries the tests that need to hold every
message in their hands: nothing here runs by itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from kvstore.codec import encode, well_formed
from kvstore.errors import PeerGone
from kvstore.messages import Blocks, Cancel, Carriage, Failed, Ready, Received
from kvstore.pages import HostPages
from kvstore.sending import Batch, Room
from kvstore.transport.cargo import Frame, RemotePages
from kvstore.transport.digests import Digest
from kvstore.transport.ends import Cargo, FromReceiver, FromSender, Load
from kvstore.transport.neighbour import Check, Neighbour

QUEUE = 1024
BATCH_BLOCKS = 4


@dataclass(frozen=True)
class Parcel:
    """What would be the frames of one message."""

    header: bytes
    payload: bytes | None = None


class Wire:
    """A connection: a bounded queue each way, and whom to wake."""

    def __init__(self, sender: threading.Event, receiver: threading.Event) -> None:
        self.up: deque[Parcel] = deque()
        self.down: deque[Parcel] = deque()
        self.broken = False
        self._sender, self._receiver = sender, receiver

    def to_sender(self, parcel: Parcel) -> bool:
        return self._put(self.up, parcel, self._sender)

    def to_receiver(self, parcel: Parcel) -> bool:
        return self._put(self.down, parcel, self._receiver)

    def cut(self) -> None:
        self.broken = True
        self._sender.set()
        self._receiver.set()

    def _put(self, queue: deque[Parcel], parcel: Parcel, news: threading.Event) -> bool:
        if self.broken or len(queue) >= QUEUE:
            return False
        queue.append(parcel)
        news.set()
        return True


class MemorySendingEnd:
    """Loads as the ZeroMQ end does; ``payloads`` holds the bytes between ``load`` and ``post``."""

    def __init__(self, uri: str, pages: HostPages, generation: str, digest: Digest) -> None:
        self.uri = uri
        self.pages = pages
        self.wires: dict[bytes, Wire] = {}
        self._generation = generation
        self._digest = digest
        self._payloads: dict[int, bytes] = {}
        self._news = threading.Event()
        self.wake = self._news.set

    def accept(self, receiver: threading.Event) -> Wire:
        wire = Wire(self._news, receiver)
        self.wires[b"peer %d" % len(self.wires)] = wire
        return wire

    def receive(self) -> FromReceiver | None:
        for peer, wire in list(self.wires.items()):
            while wire.up:
                message = well_formed(wire.up.popleft().header)
                if isinstance(message, Ready | Received | Cancel):
                    return FromReceiver(peer, message)
        return None

    def reply(self, peer: bytes, message: Failed) -> None:
        self._send(peer, Parcel(encode(message)))

    def lost(self) -> list[bytes]:
        return []

    def room(self) -> Room:
        return lambda _carriage, _peer, _under_way: BATCH_BLOCKS

    def load(self, batch: Batch) -> Load:
        message = Blocks(
            batch.transfer,
            self._generation,
            batch.group,
            batch.first,
            self._digests(batch),
            batch.block_ids if batch.carriage == "pages" else (),
        )
        if batch.carriage == "pages":
            return Load(batch.peer, message, "pages")
        buffer = np.empty(len(batch.block_ids) * self.pages.block_bytes, dtype=np.uint8)
        self.pages.gather(batch.block_ids, buffer)
        number = len(self._payloads)
        self._payloads[number] = buffer.tobytes()
        return Load(batch.peer, message, batch.carriage, buffer=number)

    def post(self, load: Load) -> None:
        payload = None if load.buffer is None else self._payloads.pop(load.buffer)
        self._send(load.peer, Parcel(encode(load.message), payload))

    def wait(self, seconds: float) -> None:
        self._news.wait(max(0.0, seconds))
        self._news.clear()

    def close(self) -> None:
        for wire in self.wires.values():
            wire.cut()

    def _digests(self, batch: Batch) -> tuple[bytes, ...]:
        return self._digest.of(batch.name, map(self.pages.pieces, batch.block_ids))

    def _send(self, peer: bytes, parcel: Parcel) -> None:
        wire = self.wires.get(peer)
        if wire is None or not wire.to_receiver(parcel):
            raise PeerGone("the queue is cut or full")


class _InProcess:
    """Another end's pages, read where they are: what a neighbour on the same host is."""

    def __init__(self, source: HostPages, target: HostPages) -> None:
        self._source, self._target = source, target

    def holds(self, blocks: Sequence[int]) -> bool:
        return all(block < self._source.blocks for block in blocks)

    def read(self, blocks: Sequence[int], into: Sequence[int], check: Check) -> int | None:
        buffer = np.empty(len(blocks) * self._source.block_bytes, dtype=np.uint8)
        self._source.gather(blocks, buffer)
        self._target.scatter(into, buffer)
        return check(range(len(blocks)))


class MemoryReceivingEnd:
    """Dials the sending ends it was given, and asks each for the same carriage."""

    def __init__(
        self,
        senders: Mapping[str, MemorySendingEnd],
        pages: HostPages,
        digest: Digest,
        carriage: Carriage,
    ) -> None:
        self._senders = senders
        self._pages = pages
        self._digest = digest
        self._carriage: Carriage = carriage
        self._wires: dict[str, Wire] = {}
        self._news = threading.Event()
        self.wake = self._news.set

    def carriage(self, peer: str) -> tuple[Carriage, bytes] | None:
        return (self._carriage, b"") if peer in self._senders else None

    def send(self, peer: str, message: Ready | Received | Cancel) -> bool:
        if peer not in self._senders:
            return False
        if peer not in self._wires:
            self._wires[peer] = self._senders[peer].accept(self._news)
        return self._wires[peer].to_sender(Parcel(encode(message)))

    def receive(self) -> FromSender | None:
        for peer, wire in list(self._wires.items()):
            while wire.down:
                parcel = wire.down.popleft()
                if arrival := self._arrived(peer, parcel):
                    return arrival
        return None

    def lost(self) -> list[str]:
        gone = [peer for peer, wire in self._wires.items() if wire.broken]
        for peer in gone:
            del self._wires[peer]
        return gone

    def wait(self, seconds: float) -> None:
        self._news.wait(max(0.0, seconds))
        self._news.clear()

    def close(self) -> None:
        for wire in self._wires.values():
            wire.cut()

    def _arrived(self, peer: str, parcel: Parcel) -> FromSender | None:
        message = well_formed(parcel.header)
        if isinstance(message, Failed):
            return FromSender(peer, message, None)
        if not isinstance(message, Blocks):
            return None
        cargo = self._cargo(self._senders[peer].pages, message, parcel.payload)
        return FromSender(peer, message, cargo) if cargo is not None else None

    def _cargo(self, source: HostPages, message: Blocks, payload: bytes | None) -> Cargo | None:
        if payload is not None:
            return None if message.pages else Frame(memoryview(payload), self._digest)
        neighbour = _InProcess(source, self._pages)
        if len(message.pages) != len(message.digests) or not neighbour.holds(message.pages):
            return None
        size = len(message.pages) * self._pages.block_bytes
        reader = cast("Neighbour", neighbour)
        return RemotePages(reader, message.pages, size, self._digest)
