"""What fuzzing throws bytes at: the codec, and what both ends make of the frames of a message.

An input is one byte that says which door it knocks at, three with the length of the first frame,
and the frames: the first of that length, a second with the rest if there is a rest.
"""

from __future__ import annotations

import random
from typing import Any, get_args

import zmq

from kvstore.cluster import Ship
from kvstore.codec import decode, encode, well_formed
from kvstore.credentials import Credentials
from kvstore.errors import WireError
from kvstore.messages import AnyMessage, Blocks, Cancel, Ready, Received
from kvstore.receiving import ReceiverCore
from kvstore.sending import SenderCore
from kvstore.transport.ends import FromSender
from kvstore.transport.zeromq_receiving import ZmqReceivingEnd
from tests.support.transfers import GENERATION, Errand, Errands, Noise, layout_of

CODEC, CONTROL, BULK, SENDER, UNDER_WAY = DOORS = range(5)
BLOCKS = 16
LAYOUT = layout_of(2, 16, 2)
KEY = b"k" * 32
PEER = "zmq+tcp://prefill:1"


def pack(door: int, header: bytes, payload: bytes = b"") -> bytes:
    """The input that brings these frames to that door."""
    return bytes([door]) + len(header).to_bytes(3, "little") + header + payload


def unpack(data: bytes) -> tuple[int, list[bytes]]:
    """Any bytes are an input."""
    length = int.from_bytes(data[1:4], "little")
    header, payload = data[4 : 4 + length], data[4 + length :]
    return (data[0] if data else 0) % len(DOORS), [header, payload] if payload else [header]


def errand() -> Errand:
    """The one transfer that is under way when an input arrives."""
    return Errands(random.Random(1), BLOCKS, BLOCKS).make(3, (0, 1), 3)


class Target:
    """Both ends without sockets: what is read from one goes the way that its thread would send it.

    ``try_one`` raises AssertionError, or what it has found, when bytes do what they may not.
    """

    def __init__(self) -> None:
        credentials = Credentials(KEY, {})
        self._pages = Noise(LAYOUT, BLOCKS, 2)
        self._before = self._pages.bytes.copy()
        self._end: Any = ZmqReceivingEnd(self._pages.pages, LAYOUT.fingerprint, Ship(), credentials)
        self._errand = errand()
        others = set(range(BLOCKS)) - set(self._errand.target.values())
        self._others = sorted(others)

    def try_one(self, data: bytes) -> None:
        door, frames = unpack(data)
        if door == CODEC:
            self._codec(frames[0])
        elif door in {SENDER, UNDER_WAY}:
            self._sender(frames[0], under_way=door == UNDER_WAY)
        else:
            self._receiver(door, frames)

    def close(self) -> None:
        self._end.close()

    def _codec(self, frame: bytes) -> None:
        """A message, and then the same once more; or a WireError."""
        try:
            message = decode(frame)
        except WireError:
            return
        assert isinstance(message, get_args(AnyMessage))
        again = encode(message)
        assert encode(decode(again)) == again

    def _receiver(self, door: int, frames: list[bytes]) -> None:
        core = ReceiverCore(LAYOUT.block_bytes)
        core.begin(self._errand.reservation(PEER, 10.0), 0.0)
        read = self._end._on_control if door == CONTROL else self._end._on_bulk
        arrival = read(PEER, _Connection(), [zmq.Frame(frame) for frame in frames])
        if arrival is not None:
            self._place(core, arrival)
        assert (self._pages.bytes[:, self._others] == self._before[:, self._others]).all()
        core.expire(11.0)
        assert len(core.take_ended()) == 1

    def _place(self, core: ReceiverCore, arrival: FromSender) -> None:
        if not isinstance(arrival.message, Blocks):
            core.on_failed(arrival.peer, arrival.message, 0.0)
            return
        assert arrival.cargo is not None
        placement = core.accept(arrival.peer, arrival.message, arrival.cargo.size, 0.0)
        if placement is None:
            return
        damaged = arrival.cargo.place(self._pages.pages, placement)
        if damaged is None:
            core.placed(placement, 0.0)
        else:
            core.corrupt(placement, placement.first + damaged, 0.0)

    def _sender(self, frame: bytes, *, under_way: bool) -> None:
        """Whatever a message says, the prompt's pages are given up once."""
        core = SenderCore(GENERATION, LAYOUT, KEY, window=4, limit=2)
        core.open(self._errand.transfer, self._errand.prompt, 10.0)
        core.supply(self._errand.transfer, self._errand.source)
        if under_way:
            core.on_ready(b"peer", self._errand.ready(LAYOUT, KEY), 0.0)
        message = well_formed(frame)
        match message:
            case Ready():
                core.on_ready(b"peer", message, 0.0)
            case Received():
                core.on_received(b"peer", message)
            case Cancel():
                core.on_cancel(b"peer", message)
        while batch := core.next_batch(lambda _carriage, _peer, _under_way: 8):
            core.sent(batch)
        core.expire(1e9)
        assert core.take_settled() == [self._errand.transfer]
        assert core.live() == 0


class _Connection:
    """A sender that is known and offers frames."""

    carriage = "frames"
    neighbour = None
    bulk = None
