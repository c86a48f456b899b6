"""Transfers from core to core over the memory transport, moved by hand: no thread, no clock.

What the threads that ship and fetch do in a turn is a method here, so a test decides what happens
when, and holds every parcel in between. It also plays both engines: pages that a sender no longer
needs are overwritten at once, and so are those of a transfer that ended at its receiver.
"""

from __future__ import annotations

from collections import deque

from kvstore.errors import PeerGone
from kvstore.layout import KVLayout, Place
from kvstore.messages import Blocks, Cancel, Carriage, FailReason, Ready, Received
from kvstore.receiving import Ended, ReceiverCore
from kvstore.sending import SenderCore
from kvstore.transport.digests import Xxh3
from tests.support.memory_transport import MemoryReceivingEnd, MemorySendingEnd, Parcel
from tests.support.transfers import GENERATION, Errand, Noise

URI = "memory://prefill"
KEY = b"k" * 32
DEADLINE = 100.0
REUSED = 0x33


class Exchange:
    """Both ends of one connection, and every errand's end as each of them was told."""

    def __init__(
        self, layout: KVLayout, source: Noise, target: Noise, carriage: Carriage, window: int = 4
    ) -> None:
        self.layout, self.source, self.target = layout, source, target
        self.carriage: Carriage = carriage
        self.sender = SenderCore(GENERATION, layout, KEY, window=window, limit=64)
        self.receiver = ReceiverCore(layout.block_bytes)
        self.now = 0.0
        self.errands: dict[bytes, Errand] = {}
        self.ends: dict[bytes, list[Ended]] = {}
        self.settled: list[bytes] = []
        self._sending = MemorySendingEnd(URI, source.pages, GENERATION, Xxh3())
        senders = {URI: self._sending}
        self._receiving = MemoryReceivingEnd(senders, target.pages, Xxh3(), carriage)
        self._contents: dict[bytes, dict[Place, bytes]] = {}
        self._untouched = target.bytes.copy()

    # -- the engines

    def ask(self, errand: Errand) -> None:
        """Decode reserves memory and sends Ready."""
        contents = {place: self.source.of(block) for place, block in errand.source.items()}
        self.errands[errand.transfer], self._contents[errand.transfer] = errand, contents
        self.receiver.begin(errand.reservation(URI, DEADLINE), self.now)
        self._receiving.send(URI, errand.ready(self.layout, KEY, self.carriage))
        self.collect()

    def open(self, errand: Errand) -> None:
        self.sender.open(errand.transfer, errand.prompt, DEADLINE)
        self.collect()

    def supply(self, errand: Errand, below: int) -> None:
        """Everything of it below that position has been computed."""
        pages = {place: block for place, block in errand.source.items() if place[1] < below}
        self.sender.supply(errand.transfer, pages)

    # -- the threads' turns; each says whether there was anything to do

    def ship(self) -> bool:
        batch = self.sender.next_batch(self._sending.room())
        if batch is None:
            return False
        load = self._sending.load(batch)
        self.sender.sent(batch)
        try:
            self._sending.post(load)
        except PeerGone:
            self.sender.peer_lost(batch.peer)
        self.collect()
        return True

    def hear_receiver(self) -> bool:
        arrival = self._sending.receive()
        if arrival is None:
            return False
        match arrival.message:
            case Ready() as ready:
                self.sender.on_ready(arrival.peer, ready, self.now)
            case Received() as received:
                self.sender.on_received(arrival.peer, received)
            case Cancel() as cancel:
                self.sender.on_cancel(arrival.peer, cancel)
        self._reply()
        return True

    def hear_sender(self) -> bool:
        arrival = self._receiving.receive()
        if arrival is None:
            return False
        if not isinstance(arrival.message, Blocks):
            self.receiver.on_failed(arrival.peer, arrival.message, self.now)
        elif arrival.cargo is not None:
            size = arrival.cargo.size
            placement = self.receiver.accept(arrival.peer, arrival.message, size, self.now)
            if placement is not None:
                damaged = arrival.cargo.place(self.target.pages, placement)
                if damaged is None:
                    self.receiver.placed(placement, self.now)
                else:
                    self.receiver.corrupt(placement, placement.first + damaged, self.now)
        self._answer()
        return True

    def expire(self, now: float) -> None:
        self.now = now
        self.sender.expire(now)
        self.receiver.expire(now)
        self._reply()
        self._answer()

    def run_dry(self) -> None:
        """Take turns until nothing moves any more."""
        while self.ship() | self.hear_receiver() | self.hear_sender():
            pass

    def cut(self) -> None:
        """The connection breaks, with all that was on the way."""
        self.receiver.peer_lost(URI, "gone", self.now)
        for peer, wire in self._sending.wires.items():
            wire.up.clear()
            wire.down.clear()
            self.sender.peer_lost(peer)
        self.sender.take_replies()
        self.receiver.take_outgoing()
        self.collect()

    # -- the wire

    @property
    def up(self) -> deque[Parcel]:
        """On the way to the sender."""
        return self._sending.wires[b"peer 0"].up

    @property
    def down(self) -> deque[Parcel]:
        """On the way to the receiver."""
        return self._sending.wires[b"peer 0"].down

    # -- what is found out

    def collect(self) -> None:
        """Hear of ends, and do with the pages what an engine would."""
        for transfer in self.sender.take_settled():
            self.settled.append(transfer)
            self.source.overwrite(self.errands[transfer].source.values())
        for end in self.receiver.take_ended():
            self.ends.setdefault(end.transfer, []).append(end)
            self._check_visible(end)
            for block in self.errands[end.transfer].target.values():
                self.target.bytes[:, block] = REUSED

    def reason(self, errand: Errand) -> FailReason | None:
        """How it ended at the receiver, which it must have, once."""
        (end,) = self.ends[errand.transfer]
        return end.reason

    def check_pages(self) -> None:
        """Nothing outside the reservations changed, nor anything inside after its end."""
        expected = self._untouched.copy()
        for transfer, errand in self.errands.items():
            for block in errand.target.values():
                assert transfer in self.ends
                expected[:, block] = REUSED
        assert (self.target.bytes == expected).all()

    def check_told_once(self) -> None:
        """Each errand ended exactly once at either end, and no state is left."""
        assert sorted(self.settled) == sorted(self.errands), (len(self.settled), len(self.errands))
        assert {transfer: len(ends) for transfer, ends in self.ends.items()} == dict.fromkeys(
            self.errands, 1
        )
        assert self.sender.live() == self.receiver.live() == 0

    def _check_visible(self, end: Ended) -> None:
        """What the engine would now use is what was computed: all of it, or what lies below.

        And nothing wrong stays in the rest.
        """
        errand, contents = self.errands[end.transfer], self._contents[end.transfer]
        for place, block in errand.target.items():
            found = self.target.of(block)
            if end.reason is None or place[1] < end.through:
                assert found == contents[place], f"{place} is wrong"
            else:
                unseen = (contents[place], self._untouched[:, block].tobytes(), bytes(len(found)))
                assert found in unseen, f"{place} was not wiped"

    def _reply(self) -> None:
        for peer, failed in self.sender.take_replies():
            self._sending.reply(peer, failed)
        self.collect()

    def _answer(self) -> None:
        for peer, message in self.receiver.take_outgoing():
            self._receiving.send(peer, message)
        self.collect()
