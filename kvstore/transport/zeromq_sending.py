"""The sending end on ZeroMQ, which listens for receiving ends.

A message is one frame; ``Blocks`` has a second frame with the bytes, handed to ZeroMQ without a
copy, or says in which of the sender's pages they lie, and the receiver reads them there
(:mod:`kvstore.transport.neighbour`). The receiver decides which.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import zmq

from kvstore.codec import MAX_HEADER_BYTES, encode, well_formed
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
    Memory,
    Ready,
    Received,
)
from kvstore.pages import HostPages, KVPages
from kvstore.sending import Batch
from kvstore.transport.digests import Digest
from kvstore.transport.ends import FromReceiver, Load
from kvstore.transport.neighbour import Readable
from kvstore.transport.polling import Polled
from kvstore.transport.sockets import SocketOptions, listen, socket_uri, uri_of
from kvstore.transport.staging import BATCH_BYTES, BUFFERS, Staging

_PAGES_BATCH_BYTES = 4 * BATCH_BYTES
"""A batch that is only told of: longer, since each costs both ends a message."""


class ZmqSendingEnd:
    """Listens for receiving ends. Refuses frames beyond a message header's limit."""

    def __init__(
        self,
        uri: str,
        pages: KVPages,
        generation: str,
        digest: Digest,
        credentials: Credentials,
        *,
        peers: int,
    ) -> None:
        self._pages = pages
        self._generation = generation
        self._digest = digest
        self._staging = Staging(pages.block_bytes)
        self._readable = Readable(pages) if isinstance(pages, HostPages) else None
        self._polled = Polled()
        options = SocketOptions(
            max_frame_bytes=MAX_HEADER_BYTES,
            send_queue=peers + BUFFERS,
            receive_queue=peers + BUFFERS,
        )
        self._scheme = uri.partition("://")[0]
        self._local = socket_uri(uri).startswith("zmq+ipc:")
        self._socket = listen(
            self._polled.context,
            socket_uri(uri),
            "prefill",
            frozenset({"decode"}),
            credentials,
            options,
        )
        self._polled.add(self._socket)
        self.wake, self.wait, self.close = self._polled.wake, self._polled.wait, self._polled.close

    @property
    def uri(self) -> str:
        """See SendingEnd."""
        return f"{self._scheme}://{uri_of(self._socket).partition('://')[2]}"

    def receive(self) -> FromReceiver | None:
        """See SendingEnd."""
        while True:
            try:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = well_formed(frames[0]) if len(frames) == 1 else None
            if isinstance(message, Ready | Received | Cancel):
                return FromReceiver(peer, message)
            if isinstance(message, Hello):
                self._greet(peer)

    def reply(self, peer: bytes, message: Failed) -> None:
        """See SendingEnd."""
        self._send(peer, message)

    def room(self) -> Mapping[Carriage, int]:
        """See SendingEnd."""
        room: dict[Carriage, int] = {"pages": max(1, _PAGES_BATCH_BYTES // self._pages.block_bytes)}
        if self._staging.free() is not None:
            room["frames"] = self._staging.batch_blocks
        return room

    def load(self, batch: Batch) -> Load:
        """See SendingEnd."""
        return self._by_pages(batch) if batch.carriage == "pages" else self._by_frames(batch)

    def post(self, load: Load) -> None:
        """See SendingEnd."""
        if load.buffer is None:
            self._send(load.peer, load.message)
            return
        blocks = len(load.message.digests)
        payload = self._staging.buffer(load.buffer, blocks)
        self._send(load.peer, load.message, more=True)
        tracker = self._socket.send(payload.data, zmq.NOBLOCK, copy=False, track=True)
        assert isinstance(tracker, zmq.MessageTracker)
        self._staging.lend(load.buffer, tracker)

    def _by_frames(self, batch: Batch) -> Load:
        """Each block is digested while the copy just made of it is still in the cache."""
        number = self._staging.free()
        assert number is not None
        buffer = self._staging.buffer(number, len(batch.block_ids))
        pieces = buffer.reshape(len(batch.block_ids), -1)
        digests = []
        for block, piece in zip(batch.block_ids, pieces, strict=True):
            self._pages.gather((block,), piece)
            digests.append(self._digest.of((piece,)))
        return Load(batch.peer, self._blocks(batch, tuple(digests)), number)

    def _by_pages(self, batch: Batch) -> Load:
        assert isinstance(self._pages, HostPages)
        digests = tuple(self._digest.of(self._pages.pieces(block)) for block in batch.block_ids)
        return Load(batch.peer, self._blocks(batch, digests, batch.block_ids))

    def _blocks(
        self, batch: Batch, digests: tuple[bytes, ...], pages: tuple[int, ...] = ()
    ) -> Blocks:
        return Blocks(batch.transfer, self._generation, batch.group, batch.first, digests, pages)

    def _greet(self, peer: bytes) -> None:
        """Nobody outside this host asks, and who cannot read the probe has learnt nothing."""
        if not self._local or self._readable is None:
            memory = Memory(version=PROTOCOL_VERSION)
        else:
            memory = self._readable.message
        with suppress(PeerGone):
            self._send(peer, memory)

    def _send(self, peer: bytes, message: AnyMessage, *, more: bool = False) -> None:
        try:
            self._socket.send(peer, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise PeerGone(f"cannot send: {error.strerror}") from None
        self._socket.send(encode(message), zmq.NOBLOCK | (zmq.SNDMORE if more else 0))
