"""The receiving end on ZeroMQ, which dials sending ends on demand.

How bytes come is decided by the address: ``zmq+tcp`` and ``zmq+ipc`` in frames, ``shm`` from the
sender's memory, ``nccl`` and ``gloo`` by a lane, ``auto`` from the sender's memory where it can be
read, by a lane between two GPUs, and in frames elsewhere. A connection where anything but frames is
possible begins with ``Hello``, and waits for the answer. Frames may come on a plain connection
beside, where both ends' configuration says so.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, get_args

import zmq
from zmq.utils.monitor import recv_monitor_message

from kvstore.cluster import Ship
from kvstore.codec import MAX_HEADER_BYTES, encode, well_formed
from kvstore.credentials import Credentials
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
    LaneMessage,
    Ready,
    Received,
    Rendezvous,
    Shipment,
    Welcome,
)
from kvstore.pages import KVPages
from kvstore.transport.allocation import keep_freed_frames
from kvstore.transport.cargo import Frame, RemotePages
from kvstore.transport.digests import digest_of, keyed_of
from kvstore.transport.ends import FromSender
from kvstore.transport.lanes_receiving import ReceivingLanes
from kvstore.transport.neighbour import Neighbour
from kvstore.transport.polling import AT_ONCE, Polled, readable
from kvstore.transport.runs import runs_of
from kvstore.transport.sockets import SocketOptions, dial, dial_plain, own_address, socket_uri
from kvstore.transport.staging import BATCH_BYTES, BUFFERS

PEERS = 256
"""Connections kept; beyond it one is dropped that was not heard of, its transfers recomputed."""

_ARRIVALS = 2 * BUFFERS
"""Messages that may lie here unread, of one sender: more is held back on its side."""

log = logging.getLogger("kvferry.decode")


@dataclass(frozen=True)
class _Wire:
    """A dialled socket and what tells of its end."""

    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[Any]

    def broken(self) -> bool:
        """Whether the connection has ended since the last call."""
        broken = False
        while readable(self.monitor):
            broken |= recv_monitor_message(self.monitor)["event"] == zmq.EVENT_DISCONNECTED
        return broken

    def received(self) -> Iterator[list[zmq.Frame]]:
        """The messages that are there, up to ``AT_ONCE``."""
        for _ in range(AT_ONCE):
            if not readable(self.dealer):
                return
            yield self.dealer.recv_multipart(zmq.NOBLOCK, copy=False)

    def send(self, message: AnyMessage) -> None:
        """Raises ZMQError while there is no connection."""
        self.dealer.send(encode(message), zmq.NOBLOCK)


@dataclass
class _Peer:
    """A sender. ``carriage`` is None until it is known what it offers."""

    control: _Wire
    carriage: Carriage | None
    greeted: bool = False
    refusal: str = ""
    neighbour: Neighbour | None = None
    bulk: _Wire | None = None
    route: bytes = b""
    greeted_on_bulk: bool = False

    def wires(self) -> list[_Wire]:
        """All its connections."""
        return [self.control] if self.bulk is None else [self.control, self.bulk]

    def greet(self) -> None:
        """Ask what is offered, then on the bulk connection, if there is one, whether it stands."""
        if self.carriage is None and not self.greeted:
            self.control.send(Hello(PROTOCOL_VERSION))
            self.greeted = True
        if self.carriage is None and self.bulk is not None and not self.greeted_on_bulk:
            self.bulk.send(Hello(PROTOCOL_VERSION))
            self.greeted_on_bulk = True


class ZmqReceivingEnd:
    """Dials sending ends; a connection that breaks is dialled anew with the next message."""

    def __init__(
        self, pages: KVPages, fingerprint: bytes, ship: Ship, credentials: Credentials
    ) -> None:
        self._pages = pages
        self._credentials = credentials
        self._wants_bulk = ship.bulk == "authenticated"
        self._digest = digest_of(ship.digest)
        self._keyed = keyed_of(ship.digest, credentials.transport_key(), fingerprint)
        self._options = SocketOptions(
            max_frame_bytes=max(2 * pages.block_bytes + BATCH_BYTES, MAX_HEADER_BYTES),
            send_queue=ship.max_transfers,
            receive_queue=_ARRIVALS,
        )
        keep_freed_frames()
        self._polled = Polled()
        self._peers: dict[str, _Peer] = {}
        self._dropped: list[str] = []
        self._second = ThreadPoolExecutor(1, thread_name_prefix="kvferry-read")
        self._lanes = ReceivingLanes(runs_of(pages, ship.digest), self._polled.wake)
        self.wake, self.wait = self._polled.wake, self._polled.wait
        self.also_await = self._polled.add

    def carriage(self, peer: str) -> tuple[Carriage, bytes] | None:
        """See ReceivingEnd."""
        try:
            connection = self._peers.get(peer) or self._dial(peer)
            connection.greet()
        except (zmq.ZMQError, ConfigError):
            # Not connected, no such folder, no descriptors left: one peer's trouble, not ours.
            return None
        if connection.refusal:
            raise PeerGone(connection.refusal)
        return (connection.carriage, connection.route) if connection.carriage else None

    def send(self, peer: str, message: Ready | Received | Cancel) -> bool:
        """See ReceivingEnd."""
        try:
            (self._peers.get(peer) or self._dial(peer)).control.send(message)
            if isinstance(message, Ready) and message.carriage == "bulk":
                self._keyed.expect(message.transfer)
        except (zmq.ZMQError, ConfigError):
            return False
        return True

    def receive(self) -> FromSender | None:
        """See ReceivingEnd. Who has been heard is heard after the others next time."""
        self._lanes.turn(self._tell_lane)
        if come := self._lanes.receive():
            return come
        for peer, connection in list(self._peers.items()):
            if found := self._hear(peer, connection):
                self._peers[peer] = self._peers.pop(peer)
                return found
        return None

    def lost(self) -> list[str]:
        """See ReceivingEnd."""
        gone = [
            peer
            for peer, connection in self._peers.items()
            if sum(wire.broken() for wire in connection.wires())
        ]
        for peer in gone:
            self._hang_up(peer)
        dropped, self._dropped = self._dropped, []
        return gone + dropped

    def close(self) -> None:
        """Drop all connections."""
        for peer in list(self._peers):
            self._hang_up(peer)
        self._lanes.close()
        self._polled.close()
        self._second.shutdown()

    def _hear(self, peer: str, connection: _Peer) -> FromSender | None:
        for frames in connection.control.received():
            if found := self._on_control(peer, connection, frames):
                return found
        for frames in connection.bulk.received() if connection.bulk else ():
            if found := self._on_bulk(peer, connection, frames):
                return found
        return None

    def _on_control(
        self, peer: str, connection: _Peer, frames: list[zmq.Frame]
    ) -> FromSender | None:
        message = well_formed(frames[0].buffer)
        if isinstance(message, Blocks):
            if len(frames) == 2 and not message.pages:
                return FromSender(peer, message, Frame(frames[1].buffer, self._digest))
            return self._in_pages(peer, connection, message) if len(frames) == 1 else None
        if len(frames) != 1:
            return None
        if isinstance(message, Welcome) and connection.carriage is None:
            self._choose(peer, connection, message)
        if isinstance(message, Rendezvous | Shipment | Broken | Entry):
            self._lanes.on_message(peer, message)
            self.wake()  # for a turn of the lanes
        return FromSender(peer, message, None) if isinstance(message, Failed) else None

    def _on_bulk(self, peer: str, connection: _Peer, frames: list[zmq.Frame]) -> FromSender | None:
        """Anybody may have written this: a block is what its MAC says, and nothing else counts."""
        message = well_formed(frames[0].buffer)
        if isinstance(message, Blocks) and len(frames) == 2 and not message.pages:
            return FromSender(peer, message, Frame(frames[1].buffer, self._keyed))
        if isinstance(message, Welcome) and connection.carriage is None:
            connection.carriage = "bulk"
        return None

    def _in_pages(self, peer: str, connection: _Peer, message: Blocks) -> FromSender | None:
        neighbour, blocks = connection.neighbour, message.pages
        if neighbour is None or len(blocks) != len(message.digests) or not neighbour.holds(blocks):
            return None
        size = len(blocks) * self._pages.block_bytes
        return FromSender(peer, message, RemotePages(neighbour, blocks, size, self._digest))

    def _choose(self, peer: str, connection: _Peer, welcome: Welcome) -> None:
        """The sender has said what it offers: take the fastest."""
        if welcome.version != PROTOCOL_VERSION:
            connection.refusal = (
                f"protocol {welcome.version} at {peer}, {PROTOCOL_VERSION} here: run one version"
            )
            return
        if self._choose_lane(peer, connection, welcome):
            return
        if socket_uri(peer).startswith("zmq+tcp:"):
            self._choose_across_hosts(peer, connection, welcome)
            return
        try:
            connection.neighbour = Neighbour(welcome, self._pages, self._second)
        except PeerGone as error:
            if peer.startswith("shm:"):
                connection.refusal = f"{peer} cannot be read: {error}"
                return
            connection.carriage = "frames"
            log.warning("KV from %s comes in frames: %s", peer, error)
        else:
            connection.carriage = "pages"
            log.warning("KV from %s is read from its memory", peer)

    def _choose_lane(self, peer: str, connection: _Peer, welcome: Welcome) -> bool:
        """Whether that is all there is to choose from.

        With ``auto`` only between GPUs: host memory is better read, or sent in frames.
        """
        scheme, shared = peer.partition("://")[0], self._lanes.shares(welcome)
        asked_for = scheme in get_args(LaneKind)
        if not asked_for and not (scheme == "auto" and shared and welcome.lane == "nccl"):
            return False
        if not shared or (asked_for and welcome.lane != scheme):
            connection.refusal = f"no lane from {peer} ({welcome.lane or 'none'} there) to here"
        else:
            self._open_lane(peer, connection)
        return True

    def _open_lane(self, peer: str, connection: _Peer) -> None:
        try:
            opened = self._lanes.open(peer, own_address(socket_uri(peer)))
        except ConfigError as error:
            connection.refusal = f"no lane from {peer}: {error}"
            return
        connection.carriage = "lane" if opened else "frames"
        log.warning("KV from %s comes %s", peer, "by a lane" if opened else "in frames: many lanes")

    def _tell_lane(self, peer: str, message: LaneMessage) -> bool:
        try:
            self._peers[peer].control.send(message)
        except zmq.ZMQError:
            return False
        return True

    def _choose_across_hosts(self, peer: str, connection: _Peer, welcome: Welcome) -> None:
        if not welcome.bulk:
            connection.carriage = "frames"
            log.warning("KV from %s comes encrypted: it offers no plain connection", peer)
            return
        connection.route = secrets.token_bytes(16)
        options = replace(self._options, routing_id=connection.route)
        try:
            connection.bulk = self._wired(
                dial_plain(self._polled.context, welcome.bulk, welcome.token, options)
            )
        except (zmq.ZMQError, ConfigError) as error:
            connection.refusal = f"no plain connection to {peer}: {error}"
            return
        log.warning("KV from %s comes in the clear, with a MAC for each block", peer)

    def _dial(self, peer: str) -> _Peer:
        if len(self._peers) >= PEERS:
            quietest = next(iter(self._peers))
            self._hang_up(quietest)
            self._dropped.append(quietest)
        uri = socket_uri(peer)
        dealer = dial(
            self._polled.context, uri, "decode", "prefill", self._credentials, self._options
        )
        remote = uri.startswith("zmq+tcp:")
        no_lane = peer.partition("://")[0] not in get_args(LaneKind)
        only_frames = no_lane and not self._wants_bulk if remote else peer.startswith("zmq+")
        connection = _Peer(self._wired(dealer), "frames" if only_frames else None)
        self._peers[peer] = connection
        return connection

    def _wired(self, dealer: zmq.Socket[bytes]) -> _Wire:
        try:
            monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        except zmq.ZMQError:
            dealer.close(linger=0)
            raise
        self._polled.add(dealer)
        self._polled.add(monitor)
        return _Wire(dealer, monitor)

    def _hang_up(self, peer: str) -> None:
        self._lanes.drop(peer)
        for wire in self._peers.pop(peer).wires():
            self._polled.remove(wire.dealer)
            self._polled.remove(wire.monitor)
            wire.dealer.disable_monitor()
            wire.monitor.close(linger=0)
            wire.dealer.close(linger=0)
