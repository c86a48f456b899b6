"""The sending end on ZeroMQ, which listens for receiving ends.

A message is one frame. ``Blocks`` has a second frame with the bytes, handed to ZeroMQ without a
copy, or says in which of the sender's pages they lie, and the receiver reads them there
(:mod:`kvstore.transport.neighbour`). Which it is, the receiver decides; it may also ask for frames
on a plain connection beside, where this end offers one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import zmq
from msgspec.structs import replace

from kvstore.cluster import Ship
from kvstore.codec import encode, well_formed
from kvstore.credentials import Credentials
from kvstore.errors import PeerGone
from kvstore.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Blocks,
    Cancel,
    Carriage,
    Failed,
    Hello,
    Ready,
    Received,
    Welcome,
)
from kvstore.pages import HostPages, KVPages
from kvstore.sending import Batch, Room
from kvstore.transport.digests import Digest, digest_of, keyed_of
from kvstore.transport.ends import FromReceiver, Load
from kvstore.transport.neighbour import Readable
from kvstore.transport.polling import Polled
from kvstore.transport.sockets import (
    SocketOptions,
    close_listener,
    listen,
    listen_plain,
    socket_uri,
    uri_of,
)
from kvstore.transport.staging import BATCH_BYTES, BUFFERS, Staging

_PAGES_BATCH_BYTES = 4 * BATCH_BYTES
"""A batch that is only told of: longer, since each costs both ends a message."""

_FULL_SECONDS = 0.001

_MAX_REQUEST_BYTES = 16 << 10
"""Longest message of a receiver: it says what it wants, and nothing it says is long."""

_MAX_HELLO_BYTES = 256
"""Longest frame that the bulk socket takes, where nobody is known."""


class ZmqSendingEnd:
    """Listens for receiving ends. A peer costs at most a queue of ``_MAX_REQUEST_BYTES`` each."""

    def __init__(
        self, uri: str, pages: KVPages, generation: str, ship: Ship, credentials: Credentials
    ) -> None:
        self._pages = pages
        self._generation = generation
        self._staging = Staging(pages.block_bytes)
        self._polled = Polled()
        self._scheme = uri.partition("://")[0]
        queue = ship.max_transfers + BUFFERS
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
        self._welcome = self._what_is_offered()
        plain, key = digest_of(ship.digest), credentials.transport_key()
        keyed = keyed_of(ship.digest, key)
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
        while True:
            try:
                peer, *frames = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = well_formed(frames[0]) if len(frames) == 1 else None
            if isinstance(message, Ready | Received | Cancel):
                return FromReceiver(peer, message)
            if isinstance(message, Hello):
                with suppress(PeerGone):
                    _send(self._control, peer, self._welcome)

    def reply(self, peer: bytes, message: Failed) -> None:
        """See SendingEnd."""
        _send(self._control, peer, message)

    def lost(self) -> list[bytes]:
        """See SendingEnd."""
        return []

    def room(self) -> Room:
        """See SendingEnd."""
        room: dict[Carriage, int] = {"pages": max(1, _PAGES_BATCH_BYTES // self._pages.block_bytes)}
        if self._staging.free() is not None:
            room["frames"] = room["bulk"] = self._staging.batch_blocks
        return lambda carriage, _peer: room.get(carriage, 0)

    def load(self, batch: Batch) -> Load:
        """See SendingEnd."""
        return self._told(batch) if batch.carriage == "pages" else self._staged(batch)

    def post(self, load: Load) -> None:
        """See SendingEnd."""
        if load.buffer is None:
            _send(self._control, load.peer, load.message)
            return
        on_bulk = load.carriage == "bulk"
        socket = self._bulk if on_bulk and self._bulk is not None else self._control
        payload = self._staging.buffer(load.buffer, len(load.message.digests))
        _send(socket, load.route if on_bulk else load.peer, load.message, more=True)
        tracker = socket.send(payload.data, zmq.NOBLOCK, copy=False, track=True)
        assert isinstance(tracker, zmq.MessageTracker)
        self._staging.lend(load.buffer, tracker)

    def wait(self, seconds: float) -> None:
        """See SendingEnd. Nobody tells when ZeroMQ lets go of a buffer."""
        self._polled.wait(seconds if self._staging.free() is not None else _FULL_SECONDS)

    def close(self) -> None:
        """Drop all connections; an ipc socket's path goes too."""
        close_listener(self._control)
        self._polled.close()

    def _staged(self, batch: Batch) -> Load:
        number = self._staging.free()
        assert number is not None
        digest, count = self._digests[batch.carriage], len(batch.block_ids)
        buffer = self._staging.buffer(number, count)
        self._pages.gather(batch.block_ids, buffer)
        pieces = buffer.reshape(count, -1)
        digests = tuple(digest.of(batch.name(index), (pieces[index],)) for index in range(count))
        return Load(
            batch.peer, self._blocks(batch, digests, ()), batch.carriage, batch.route, number
        )

    def _told(self, batch: Batch) -> Load:
        assert isinstance(self._pages, HostPages)
        digest = self._digests["pages"]
        digests = tuple(
            digest.of(batch.name(index), self._pages.pieces(block))
            for index, block in enumerate(batch.block_ids)
        )
        return Load(batch.peer, self._blocks(batch, digests, batch.block_ids), "pages")

    def _blocks(self, batch: Batch, digests: tuple[bytes, ...], pages: tuple[int, ...]) -> Blocks:
        return Blocks(batch.transfer, self._generation, batch.group, batch.first, digests, pages)

    def _listen_for_bulk(
        self, uri: str, ship: Ship, options: SocketOptions
    ) -> zmq.Socket[bytes] | None:
        if ship.bulk != "authenticated" or not uri.startswith("zmq+tcp:"):
            return None
        from_nobody = SocketOptions(_MAX_HELLO_BYTES, options.send_queue, BUFFERS)
        socket = listen_plain(self._polled.context, uri, from_nobody)
        self._polled.add(socket)
        return socket

    def _what_is_offered(self) -> Welcome:
        """Only who is on this host asks at an ipc socket, and only there memory can be read."""
        if self._bulk is not None:
            return Welcome(PROTOCOL_VERSION, bulk=uri_of(self._bulk))
        local = uri_of(self._control).startswith("zmq+ipc:")
        if local and self._readable is not None:
            return self._readable.message
        return Welcome(PROTOCOL_VERSION)

    def _greet_on_bulk(self, bulk: zmq.Socket[bytes]) -> None:
        """Answer there what tells a receiver that its route is known. At most a queue full."""
        for _ in range(BUFFERS):
            try:
                route, *frames = bulk.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) == 1 and isinstance(well_formed(frames[0]), Hello):
                with suppress(PeerGone):
                    _send(bulk, route, replace(self._welcome, bulk=""))


def _send(
    socket: zmq.Socket[bytes], peer: bytes, message: AnyMessage, *, more: bool = False
) -> None:
    try:
        socket.send(peer, zmq.SNDMORE | zmq.NOBLOCK)
    except zmq.ZMQError as error:
        raise PeerGone(f"cannot send: {error.strerror}") from None
    socket.send(encode(message), zmq.NOBLOCK | (zmq.SNDMORE if more else 0))
