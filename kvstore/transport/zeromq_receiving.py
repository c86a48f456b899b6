"""The receiving end on ZeroMQ, which dials sending ends on demand.

How bytes come is decided by the address: ``zmq+tcp`` and ``zmq+ipc`` in frames, ``shm`` from the
sender's memory, ``auto`` from there where it can be read and in frames elsewhere. A connection to
a sender on this host begins with ``Hello``, and waits for the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from kvstore.codec import MAX_HEADER_BYTES, encode, well_formed
from kvstore.credentials import Credentials
from kvstore.errors import ConfigError, PeerGone
from kvstore.messages import (
    PROTOCOL_VERSION,
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
from kvstore.transport.digests import Digest
from kvstore.transport.ends import FromSender
from kvstore.transport.neighbour import Neighbour
from kvstore.transport.polling import Polled
from kvstore.transport.sockets import SocketOptions, dial, socket_uri
from kvstore.transport.staging import BATCH_BYTES

PEERS = 256
"""Connections kept; beyond it the oldest is dropped, and its transfers are recomputed."""

log = logging.getLogger("kvferry.decode")


@dataclass(frozen=True)
class FramePayload:
    """Blocks in a message's second frame."""

    frame: memoryview
    digest: Digest

    @property
    def size(self) -> int:
        """See Cargo."""
        return len(self.frame)

    def place(
        self, pages: KVPages, block_ids: Sequence[int], digests: Sequence[bytes]
    ) -> int | None:
        """See Cargo. Nothing is written unless all digests are right."""
        blocks = np.frombuffer(self.frame, dtype=np.uint8).reshape(len(block_ids), -1)
        for index, digest in enumerate(digests):
            if self.digest.of((blocks[index],)) != digest:
                return index
        pages.scatter(block_ids, blocks.reshape(-1))
        return None


@dataclass(frozen=True)
class PagesPayload:
    """Blocks that lie in the sender's pages."""

    neighbour: Neighbour
    blocks: tuple[int, ...]
    size: int
    digest: Digest

    def place(
        self, pages: KVPages, block_ids: Sequence[int], digests: Sequence[bytes]
    ) -> int | None:
        """See Cargo. What was read and is not right is wiped: it may be anybody's."""
        assert isinstance(pages, HostPages)
        try:
            self.neighbour.read(self.blocks, block_ids)
        except PeerGone:
            pages.wipe(block_ids)
            raise
        for index, (block, digest) in enumerate(zip(block_ids, digests, strict=True)):
            if self.digest.of(pages.pieces(block)) != digest:
                pages.wipe(block_ids)
                return index
        return None


@dataclass
class _Peer:
    """A connection. ``carriage`` is None until the sender has said whether it can be read."""

    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[Any]
    carriage: Carriage | None
    neighbour: Neighbour | None = None
    greeted: bool = False
    refusal: str = ""


class ZmqReceivingEnd:
    """Dials sending ends; a connection that breaks is dialled anew with the next message."""

    def __init__(
        self, pages: KVPages, digest: Digest, credentials: Credentials, *, queue: int
    ) -> None:
        self._pages = pages
        self._digest = digest
        self._credentials = credentials
        self._options = SocketOptions(
            max_frame_bytes=max(2 * pages.block_bytes + BATCH_BYTES, MAX_HEADER_BYTES),
            send_queue=queue,
            receive_queue=queue,
        )
        self._polled = Polled()
        self._peers: dict[str, _Peer] = {}
        self._second = ThreadPoolExecutor(1, thread_name_prefix="kvferry-read")
        self.wake, self.wait = self._polled.wake, self._polled.wait
        self.also_await = self._polled.add

    def carriage(self, peer: str) -> Carriage | None:
        """See ReceivingEnd."""
        try:
            connection = self._peers.get(peer) or self._dial(peer)
            if connection.carriage is None and not connection.greeted:
                connection.dealer.send(encode(Hello(PROTOCOL_VERSION)), zmq.NOBLOCK)
                connection.greeted = True
        except (zmq.ZMQError, ConfigError):
            return None
        if connection.refusal:
            raise PeerGone(connection.refusal)
        return connection.carriage

    def send(self, peer: str, message: Ready | Received | Cancel) -> bool:
        """See ReceivingEnd."""
        try:
            connection = self._peers.get(peer) or self._dial(peer)
            connection.dealer.send(encode(message), zmq.NOBLOCK)
        except (zmq.ZMQError, ConfigError):
            # Not connected, no such folder, no descriptors left: one peer's trouble, not ours.
            return False
        return True

    def receive(self) -> FromSender | None:
        """See ReceivingEnd."""
        for peer, connection in self._peers.items():
            while True:
                try:
                    frames = connection.dealer.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                message = well_formed(frames[0].buffer)
                if isinstance(message, Blocks):
                    payload = frames[1].buffer if len(frames) == 2 else None
                    if found := self._arrived(peer, connection, message, payload):
                        return found
                elif isinstance(message, Failed) and len(frames) == 1:
                    return FromSender(peer, message, None)
                elif isinstance(message, Memory) and len(frames) == 1:
                    self._learn(peer, connection, message)
        return None

    def lost(self) -> list[str]:
        """See ReceivingEnd."""
        gone = []
        for peer, connection in self._peers.items():
            while connection.monitor.poll(0):
                event = recv_monitor_message(connection.monitor)
                if event["event"] == zmq.EVENT_DISCONNECTED and peer not in gone:
                    gone.append(peer)
        for peer in gone:
            self._hang_up(peer)
        return gone

    def close(self) -> None:
        """Drop all connections."""
        for peer in list(self._peers):
            self._hang_up(peer)
        self._polled.close()
        self._second.shutdown()

    def _arrived(
        self, peer: str, connection: _Peer, message: Blocks, payload: memoryview | None
    ) -> FromSender | None:
        """None for blocks that do not come the agreed way."""
        if payload is not None and not message.pages:
            return FromSender(peer, message, FramePayload(payload, self._digest))
        neighbour = connection.neighbour
        if payload is not None or neighbour is None or not neighbour.holds(message.pages):
            return None
        if len(message.pages) != len(message.digests):
            return None
        size = len(message.pages) * self._pages.block_bytes
        return FromSender(peer, message, PagesPayload(neighbour, message.pages, size, self._digest))

    def _learn(self, peer: str, connection: _Peer, memory: Memory) -> None:
        """The sender has said where its pages lie: read them there, or ask for frames."""
        try:
            connection.neighbour = Neighbour(memory, self._pages, self._second)
            connection.carriage = "pages"
        except PeerGone as error:
            if peer.startswith("shm:"):
                connection.refusal = f"no shared memory with {peer}: {error}"
                return
            connection.carriage = "frames"
            log.warning("KV from %s comes in frames: %s", peer, error)
        else:
            log.info("KV from %s is read from its memory", peer)

    def _dial(self, peer: str) -> _Peer:
        if len(self._peers) >= PEERS:
            self._hang_up(next(iter(self._peers)))
        uri = socket_uri(peer)
        dealer = dial(
            self._polled.context, uri, "decode", "prefill", self._credentials, self._options
        )
        try:
            monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        except zmq.ZMQError:
            dealer.close(linger=0)
            raise
        in_frames = peer.startswith("zmq+") or uri.startswith("zmq+tcp:")
        connection = _Peer(dealer, monitor, "frames" if in_frames else None)
        self._peers[peer] = connection
        self._polled.add(dealer)
        self._polled.add(monitor)
        return connection

    def _hang_up(self, peer: str) -> None:
        connection = self._peers.pop(peer)
        dealer, monitor = connection.dealer, connection.monitor
        self._polled.remove(dealer)
        self._polled.remove(monitor)
        dealer.disable_monitor()
        monitor.close(linger=0)
        dealer.close(linger=0)
