"""The sending end on ZeroMQ, which listens for receiving ends.

A message is one frame. ``Blocks`` has a second frame with the bytes, handed to ZeroMQ without a
copy, or says in which of the sender's pages they lie, and the receiver reads them there
(:mod:`kvstore.transport.neighbour`). Which it is, the receiver decides; it may also ask for frames
on a plain connection beside, or for a lane (:mod:`kvstore.lane`), where this end offers one.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import get_args

import zmq
from msgspec.structs import replace

from kvstore.cluster import Ship
from kvstore.codec import encode, well_formed
from kvstore.credentials import Credentials
from kvstore.device_pages import DevicePages
from kvstore.errors import ConfigError, PeerGone
from kvstore.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Blocks,
    Broken,
    Cancel,
    Carriage,
    Entry,
    Failed,
    Hello,
    LaneKind,
    Ready,
    Received,
    Taken,
    Welcome,
)
from kvstore.pages import Bytes, HostPages, KVPages
from kvstore.sending import WINDOWS_OF_ONE, Batch, Room
from kvstore.transport.digests import Digest, digest_of, keyed_of
from kvstore.transport.ends import FromReceiver, Load
from kvstore.transport.lanes_sending import SendingLanes
from kvstore.transport.neighbour import Readable
from kvstore.transport.polling import AT_ONCE, Polled, readable
from kvstore.transport.runs import Runs, runs_of
from kvstore.transport.sockets import (
    SocketOptions,
    close_listener,
    listen,
    listen_plain,
    own_address,
    socket_uri,
    uri_of,
)
from kvstore.transport.staging import BUFFERS, MAX_BATCH_BLOCKS, Staging

_FIRST_BYTES, _TOLD_BYTES = 1 << 20, 8 << 20
"""A receiver's first batch, and the longest that is only told of. Each costs both ends a message,
so one is as long as what is on the way already: short while the receiver has nothing to do yet."""

_MAX_REQUEST_BYTES = 16 << 10
"""Longest message of a receiver: it says what it wants, and nothing it says is long."""

_MAX_HELLO_BYTES = 256
"""Longest frame that the bulk socket takes, where nobody is known."""


@dataclass(frozen=True)
class Sender:
    """Who a sending end sends for: a start of its engine, and what its blocks mean."""

    generation: str
    fingerprint: bytes


class ZmqSendingEnd:
    """Listens for receiving ends. A peer costs at most a queue of ``_MAX_REQUEST_BYTES`` each."""

    def __init__(
        self, uri: str, pages: KVPages, sender: Sender, ship: Ship, credentials: Credentials
    ) -> None:
        self._pages = pages
        self._generation = sender.generation
        self._staging = Staging(pages.block_bytes)
        self._wanting = False  # blocks were held back for want of a buffer
        self._lent: dict[int, weakref.ref[Bytes]] = {}
        self._polled = Polled()
        self._scheme = uri.partition("://")[0]
        self._gone: list[bytes] = []
        self._token = secrets.token_hex(16)
        runs = _runs_for(uri, pages, ship)
        under_way = WINDOWS_OF_ONE * ship.window_blocks(pages.block_bytes)
        queue = ship.max_transfers + BUFFERS + under_way
        options = SocketOptions(
            max_frame_bytes=_MAX_REQUEST_BYTES, send_queue=queue, receive_queue=queue
        )
        self._control = listen(
            self._polled.context,
            socket_uri(uri),
            "prefill",
            frozenset({"decode"}),
            credentials,
            options,
        )
        self._polled.add(self._control)
        self._bulk = self._listen_for_bulk(socket_uri(uri), ship, options)
        self._readable = Readable(pages) if isinstance(pages, HostPages) else None
        self._lanes: SendingLanes | None = None
        self._welcome = self._what_is_offered()
        if runs is not None:
            address = own_address(uri_of(self._control))
            self._lanes = SendingLanes(runs, address, self._polled.wake)
            self._welcome = replace(self._welcome, lane=runs.kind, device=runs.device)
        plain, key = digest_of(ship.digest), credentials.transport_key()
        keyed = keyed_of(ship.digest, key, sender.fingerprint)
        self._digests: Mapping[Carriage, Digest] = {"frames": plain, "pages": plain, "bulk": keyed}
        self.wake = self._polled.wake

    @property
    def uri(self) -> str:
        """See SendingEnd."""
        return f"{self._scheme}://{uri_of(self._control).partition('://')[2]}"

    def receive(self) -> FromReceiver | None:
        """See SendingEnd."""
        if self._bulk is not None:
            self._greet_on_bulk(self._bulk)
        for _ in range(AT_ONCE):
            if lost := self._turn_of_lanes():
                return lost
            if not readable(self._control):
                return None
            peer, *frames = self._control.recv_multipart(zmq.NOBLOCK)
            message = well_formed(frames[0]) if len(frames) == 1 else None
            if message is not None and (heard := self._hear(peer, message)):
                return heard
        return self._turn_of_lanes()

    def reply(self, peer: bytes, message: Failed) -> None:
        """See SendingEnd."""
        _send(self._control, peer, message)

    def lost(self) -> list[bytes]:
        """See SendingEnd."""
        gone, self._gone = self._gone, []
        return gone

    def room(self) -> Room:
        """See SendingEnd."""
        first, told = (size // self._pages.block_bytes for size in (_FIRST_BYTES, _TOLD_BYTES))
        staged: dict[bytes, int] = {}
        self._wanting = False

        def room(carriage: Carriage, peer: bytes, under_way: int) -> int:
            wanted = max(1, first, under_way)
            match carriage:
                case "pages":
                    return min(wanted, max(1, told), MAX_BATCH_BLOCKS)
                case "lane":
                    return 0 if self._lanes is None else self._lanes.room(peer)
                case "frames" | "bulk":
                    if peer not in staged:
                        staged[peer] = self._room_staged(peer)
                    return min(wanted, staged[peer])

        return room

    def load(self, batch: Batch) -> Load:
        """See SendingEnd."""
        if batch.carriage == "lane" and self._lanes is not None:
            return Load(batch.peer, self._blocks(batch, self._lanes.load(batch), ()), "lane")
        return self._told(batch) if batch.carriage == "pages" else self._staged(batch)

    def post(self, load: Load) -> None:
        """See SendingEnd."""
        if load.carriage == "lane" and self._lanes is not None:
            self._lanes.send(load.peer, load.message)
            self._tell_lanes()
            return
        if load.buffer is None:
            _send(self._control, load.peer, load.message)
            return
        on_bulk = load.carriage == "bulk"
        socket = self._bulk if on_bulk and self._bulk is not None else self._control
        payload = self._staging.buffer(load.buffer, len(load.message.digests))
        _send(socket, load.route if on_bulk else load.peer, load.message, more=True)
        tracker = socket.send(payload.data, zmq.NOBLOCK, copy=False, track=True)
        assert isinstance(tracker, zmq.MessageTracker)
        self._staging.lend(load.buffer, tracker, load.peer)
        self._lent[load.buffer] = weakref.ref(payload, self._on_released)

    def wait(self, seconds: float) -> None:
        """See SendingEnd."""
        self._polled.wait(seconds)

    def close(self) -> None:
        """Drop all connections; an ipc socket's path goes too."""
        if self._lanes is not None:
            self._lanes.close()
        close_listener(self._control)
        self._polled.close()

    def _hear(self, peer: bytes, message: AnyMessage) -> FromReceiver | None:
        """What is for the shipper; the rest is answered here."""
        match message:
            case Ready() if message.carriage not in self._offered():
                self._refuse(peer, message)
            case Ready():
                if digest := self._digests.get(message.carriage):
                    digest.expect(message.transfer)
                return FromReceiver(peer, message)
            case Received() | Cancel():
                return FromReceiver(peer, message)
            case Taken() | Broken() | Entry() if self._lanes is not None:
                self._lanes.on_message(peer, message)
            case Hello():
                with suppress(PeerGone):
                    _send(self._control, peer, self._welcome)
        return None

    def _offered(self) -> set[Carriage]:
        """How blocks of this end may be had."""
        offered: set[Carriage] = {"frames"}
        if self._welcome.pid:
            offered.add("pages")
        if self._bulk is not None:
            offered.add("bulk")
        if self._lanes is not None:
            offered.add("lane")
        return offered

    def _refuse(self, peer: bytes, ready: Ready) -> None:
        detail = f"blocks cannot be had by {ready.carriage!r} here"
        with suppress(PeerGone):
            _send(self._control, peer, Failed(ready.transfer, "protocol", detail))

    def _turn_of_lanes(self) -> FromReceiver | None:
        if self._lanes is None:
            return None
        self._tell_lanes()
        return self._lanes.receive()

    def _tell_lanes(self) -> None:
        """What lanes have to say, to whoever is still there."""
        assert self._lanes is not None
        for peer, message in self._lanes.turn():
            try:
                _send(self._control, peer, message)
            except PeerGone:
                self._lanes.drop(peer)
                self._gone.append(peer)

    def _room_staged(self, peer: bytes) -> int:
        wanted, self._wanting = self._wanting, True  # before looking: none is released unseen
        if self._staging.free() is None or not self._staging.free_for(peer):
            return 0
        self._wanting = wanted
        return self._staging.batch_blocks

    def _on_released(self, _: object) -> None:
        """ZeroMQ has let go of a buffer. Called in a thread of pyzmq's."""
        if self._wanting:
            self._polled.wake()

    def _staged(self, batch: Batch) -> Load:
        number = self._staging.free()
        assert number is not None
        digest, count = self._digests[batch.carriage], len(batch.block_ids)
        buffer = self._staging.buffer(number, count)
        self._pages.gather(batch.block_ids, buffer)
        digests = digest.of(batch.name, buffer.reshape(count, 1, -1))
        return Load(
            batch.peer, self._blocks(batch, digests, ()), batch.carriage, batch.route, number
        )

    def _told(self, batch: Batch) -> Load:
        assert isinstance(self._pages, HostPages)
        blocks = map(self._pages.pieces, batch.block_ids)
        digests = self._digests["pages"].of(batch.name, blocks)
        return Load(batch.peer, self._blocks(batch, digests, batch.block_ids), "pages")

    def _blocks(self, batch: Batch, digests: tuple[bytes, ...], pages: tuple[int, ...]) -> Blocks:
        return Blocks(batch.transfer, self._generation, batch.group, batch.first, digests, pages)

    def _listen_for_bulk(
        self, uri: str, ship: Ship, options: SocketOptions
    ) -> zmq.Socket[bytes] | None:
        if ship.bulk != "authenticated" or not uri.startswith("zmq+tcp:"):
            return None
        from_nobody = SocketOptions(_MAX_HELLO_BYTES, options.send_queue, BUFFERS)
        socket = listen_plain(self._polled.context, uri, self._token, from_nobody)
        self._polled.add(socket)
        return socket

    def _what_is_offered(self) -> Welcome:
        """Only who is on this host asks at an ipc socket, and only there memory can be read."""
        if self._bulk is not None:
            return Welcome(PROTOCOL_VERSION, bulk=uri_of(self._bulk), token=self._token)
        local = uri_of(self._control).startswith("zmq+ipc:")
        if local and self._readable is not None:
            return self._readable.message
        return Welcome(PROTOCOL_VERSION)

    def _greet_on_bulk(self, bulk: zmq.Socket[bytes]) -> None:
        """Answer there what tells a receiver that its route is known. At most a queue full."""
        for _ in range(BUFFERS):
            if not readable(bulk):
                return
            route, *frames = bulk.recv_multipart(zmq.NOBLOCK)
            if len(frames) == 1 and isinstance(well_formed(frames[0]), Hello):
                with suppress(PeerGone):
                    _send(bulk, route, replace(self._welcome, bulk="", token=""))


def _runs_for(uri: str, pages: KVPages, ship: Ship) -> Runs | None:
    """What this end's lanes carry, if it offers any.

    An ``auto`` address offers one between GPUs, across hosts only where the network may carry KV in
    the clear: nobody encrypts a lane. Raises ConfigError where the address asks for one that these
    pages cannot have.
    """
    scheme = uri.partition("://")[0]
    if scheme in get_args(LaneKind):
        runs = runs_of(pages, ship.digest)
        if runs.kind != scheme:
            raise ConfigError(f"{uri}: these KV pages can go by {runs.kind}, not by {scheme}")
        return runs
    private = socket_uri(uri).startswith("zmq+ipc:") or ship.bulk == "authenticated"
    on_device = isinstance(pages, DevicePages)
    return runs_of(pages, ship.digest) if scheme == "auto" and private and on_device else None


def _send(
    socket: zmq.Socket[bytes], peer: bytes, message: AnyMessage, *, more: bool = False
) -> None:
    try:
        socket.send(peer, zmq.SNDMORE | zmq.NOBLOCK)
    except zmq.ZMQError as error:
        raise PeerGone(f"cannot send: {error.strerror}") from None
    socket.send(encode(message), zmq.NOBLOCK | (zmq.SNDMORE if more else 0))
