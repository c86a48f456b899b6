"""The two ends of the shipping channel on ZeroMQ: what a sending and a receiving thread hold.

A message is one frame; ``Blocks`` has a second frame with the tensor bytes, which are handed to
ZeroMQ without a copy. Each wire belongs to one thread; only ``wake`` may be called from others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from kvstore.codec import MAX_HEADER_BYTES, decode, encode
from kvstore.credentials import Credentials
from kvstore.errors import ConfigError, WireError
from kvstore.messages import (
    Abandon,
    AnyMessage,
    Begun,
    Blocks,
    Cancel,
    Failed,
    GateMessage,
    Outcome,
    Ready,
    Received,
)
from kvstore.pages import Bytes
from kvstore.transport.sockets import SocketOptions, dial, listen, uri_of

_GATE_QUEUE = 1024
_PEERS = 256


class PeerGone(WireError):
    """There is no connection to that peer any more."""


class Sending:
    """Whether ZeroMQ still reads a buffer that was handed to it."""

    def __init__(self, tracker: zmq.MessageTracker) -> None:
        self._tracker = tracker

    @property
    def done(self) -> bool:
        """True once the buffer may be written again."""
        return self._tracker.done


@dataclass(frozen=True)
class FromReceiver:
    """A message a prefill worker got, and from which connection."""

    peer: bytes
    message: Ready | Received | Cancel


@dataclass(frozen=True)
class FromSender:
    """A message a decode worker got, and from which address. ``payload``: the tensor bytes."""

    peer: str
    message: Blocks | Failed
    payload: memoryview


class _Polled:
    """A poller that other threads can wake."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.poller = zmq.Poller()
        self.poller.register(self._wake, zmq.POLLIN)

    def wake(self) -> None:
        """End the current or next ``wait`` at once. Safe from any thread."""
        os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float) -> None:
        """Return when there is something to do, or after ``seconds``."""
        ready = dict(self.poller.poll(max(0, math.ceil(seconds * 1000))))
        if self._wake in ready:
            os.eventfd_read(self._wake)

    def close(self) -> None:
        self.context.destroy(linger=0)
        os.close(self._wake)


class PrefillWire:
    """Listens for decode workers. Refuses frames beyond a message header's limit."""

    def __init__(self, uri: str, credentials: Credentials, *, queue: int) -> None:
        self._polled = _Polled()
        options = SocketOptions(
            max_frame_bytes=MAX_HEADER_BYTES, send_queue=queue, receive_queue=queue
        )
        self._socket = listen(
            self._polled.context, uri, "prefill", frozenset({"decode"}), credentials, options
        )
        self._polled.poller.register(self._socket, zmq.POLLIN)
        self.wake = self._polled.wake
        self.wait = self._polled.wait
        self.malformed = 0

    @property
    def uri(self) -> str:
        """Where decode workers reach this wire."""
        return uri_of(self._socket)

    def receive(self) -> FromReceiver | None:
        """The next message that is well-formed and ours to get; None when there is none now."""
        while True:
            try:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = _decoded(frames[:1]) if len(frames) == 1 else None
            if isinstance(message, Ready | Received | Cancel):
                return FromReceiver(peer, message)
            self.malformed += 1

    def send(self, peer: bytes, message: Failed) -> None:
        """Raises PeerGone when ``peer`` is gone or takes no more."""
        self._send(peer, [encode(message)])

    def send_blocks(self, peer: bytes, message: Blocks, payload: Bytes) -> Sending:
        """Send blocks; ``payload`` must stay unchanged until the result is done.

        Raises PeerGone when ``peer`` is gone or takes no more.
        """
        self._send(peer, [encode(message)], more=True)
        tracker = self._socket.send(payload.data, zmq.NOBLOCK, copy=False, track=True)
        assert isinstance(tracker, zmq.MessageTracker)
        return Sending(tracker)

    def _send(self, peer: bytes, frames: list[bytes], *, more: bool = False) -> None:
        try:
            self._socket.send(peer, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise PeerGone(f"cannot send: {error.strerror}") from None
        for index, frame in enumerate(frames):
            last = index == len(frames) - 1 and not more
            self._socket.send(frame, zmq.NOBLOCK | (0 if last else zmq.SNDMORE))

    def close(self) -> None:
        """Drop all connections."""
        self._polled.close()


class DecodeWire:
    """Dials prefill workers on demand, and talks to this worker's HTTP gate.

    At most ``_PEERS`` connections are kept; a connection that breaks is reported once by ``lost``
    and dialled anew with the next message.
    """

    def __init__(
        self, credentials: Credentials, *, gate: str, abandon: str, max_payload: int, queue: int
    ) -> None:
        self._credentials = credentials
        self._options = SocketOptions(
            max_frame_bytes=max(max_payload, MAX_HEADER_BYTES),
            send_queue=queue,
            receive_queue=queue,
        )
        self._polled = _Polled()
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._monitors: dict[str, zmq.Socket[Any]] = {}
        context = self._polled.context
        self._reports, self._abandons = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        self._reports.setsockopt(zmq.SNDHWM, _GATE_QUEUE)
        self._abandons.setsockopt(zmq.RCVHWM, _GATE_QUEUE)
        self._reports.connect(gate)
        self._abandons.bind(abandon)
        self._polled.poller.register(self._abandons, zmq.POLLIN)
        self.wake = self._polled.wake
        self.wait = self._polled.wait
        self.malformed = 0

    def send(self, peer: str, message: Ready | Received | Cancel) -> bool:
        """Whether ``message`` went out: False while there is no connection (yet, or at all)."""
        try:
            dealer = self._dealers.get(peer) or self._dial(peer)
            dealer.send(encode(message), zmq.NOBLOCK)
        except (zmq.ZMQError, ConfigError):
            # Not connected, no such folder, no descriptors left: one peer's trouble, not ours.
            return False
        return True

    def receive(self) -> FromSender | None:
        """The next well-formed message of any sender; None when there is none now."""
        for peer, dealer in self._dealers.items():
            while True:
                try:
                    frames = dealer.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                message = _decoded([frame.buffer for frame in frames[:1]])
                if isinstance(message, Blocks) and len(frames) == 2:
                    return FromSender(peer, message, frames[1].buffer)
                if isinstance(message, Failed) and len(frames) == 1:
                    return FromSender(peer, message, memoryview(b""))
                self.malformed += 1
        return None

    def lost(self) -> list[str]:
        """Senders whose connection broke since the last call."""
        gone = []
        for peer, monitor in self._monitors.items():
            while monitor.poll(0):
                event = recv_monitor_message(monitor)
                if event["event"] == zmq.EVENT_DISCONNECTED and peer not in gone:
                    gone.append(peer)
        for peer in gone:
            self._hang_up(peer)
        return gone

    def abandoned(self) -> list[bytes]:
        """Transfers the gate has given up since the last call."""
        transfers: list[bytes] = []
        while True:
            try:
                message = _decoded([self._abandons.recv(zmq.NOBLOCK)])
            except zmq.Again:
                return transfers
            if isinstance(message, Abandon):
                transfers.append(message.transfer)

    def report(self, message: Outcome | Begun) -> bool:
        """Tell the gate; False when nobody takes it (the gate then knows nothing of it)."""
        try:
            self._reports.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Drop all connections."""
        for peer in list(self._dealers):
            self._hang_up(peer)
        self._polled.close()

    def _dial(self, peer: str) -> zmq.Socket[bytes]:
        if len(self._dealers) >= _PEERS:
            self._hang_up(next(iter(self._dealers)))
        dealer = dial(
            self._polled.context, peer, "decode", "prefill", self._credentials, self._options
        )
        try:
            monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        except zmq.ZMQError:
            dealer.close(linger=0)
            raise
        self._dealers[peer], self._monitors[peer] = dealer, monitor
        self._polled.poller.register(dealer, zmq.POLLIN)
        self._polled.poller.register(monitor, zmq.POLLIN)
        return dealer

    def _hang_up(self, peer: str) -> None:
        dealer, monitor = self._dealers.pop(peer), self._monitors.pop(peer)
        self._polled.poller.unregister(dealer)
        self._polled.poller.unregister(monitor)
        dealer.disable_monitor()
        monitor.close(linger=0)
        dealer.close(linger=0)


def _decoded(frames: Sequence[bytes | memoryview]) -> AnyMessage | None:
    try:
        return decode(frames[0])
    except (WireError, IndexError):
        return None


class GateLink:
    """The HTTP gate's end: awaits reports, sends abandons. For asyncio: poll ``fileno``."""

    def __init__(self, *, gate: str, abandon: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reports, self._abandons = (
            self._context.socket(zmq.PULL),
            self._context.socket(zmq.PUSH),
        )
        self._reports.setsockopt(zmq.RCVHWM, _GATE_QUEUE)
        self._abandons.setsockopt(zmq.SNDHWM, _GATE_QUEUE)
        self._reports.bind(gate)
        self._abandons.connect(abandon)

    def fileno(self) -> int:
        """Readable when ``reports`` should be called."""
        descriptor = self._reports.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        return descriptor

    def reports(self) -> list[Outcome | Begun]:
        """What the connector has told since the last call, in order."""
        found: list[Outcome | Begun] = []
        while True:
            try:
                message = _decoded([self._reports.recv(zmq.NOBLOCK)])
            except zmq.Again:
                return found
            if isinstance(message, Outcome | Begun):
                found.append(message)

    def send(self, message: GateMessage) -> bool:
        """Whether the connector took it."""
        try:
            self._abandons.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Drop both ends."""
        self._context.destroy(linger=0)

    def __enter__(self) -> GateLink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
