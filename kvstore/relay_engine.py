"""A relay's ends of its engine: the cache events it publishes, and what it says of tenants.

Both are private ipc sockets. Of the events what was missed is asked for again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq

from kvstore.codec import MAX_HEADER_BYTES
from kvstore.engine_events import EventOrder, InOrder
from kvstore.errors import ConfigError

REPLAY_SECONDS = 2.0
"""How long a replay may take before what is missing counts as lost."""
PROBE_SECONDS = 2.0
"""Without events for so long, a replay shows whether the last ones went missing."""

_BURST = 256
_MAX_EVENT_BYTES = 64 << 20
_EVENT_QUEUE = 100_000
_TENANT_QUEUE = 64
_REPLAY_OVER = b"\xff" * 8


def replay_endpoint(events: str) -> str:
    """Where the engine that publishes on ``events`` answers replays."""
    return f"{events}-replay"


class EngineEvents:
    """The engine's event socket, and its replay socket while something is asked for."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], events: str) -> None:
        self.events = events
        self._context = context
        self._order = EventOrder()
        self._live = self._connect(zmq.SUB, events)
        self._replay: zmq.Socket[bytes] | None = None
        self._asked = False
        self._replay_until = 0.0
        self._quiet_until = 0.0

    @property
    def sockets(self) -> list[zmq.Socket[Any]]:
        """What to wait on."""
        return [self._live] if self._replay is None else [self._live, self._replay]

    def close(self) -> None:
        """Closes both sockets."""
        self._live.close()
        self._end_replay()

    def hear(self, now: float) -> list[InOrder]:
        """What has arrived, in order; asks for what is missing."""
        heard = []
        for _ in range(_BURST):
            frames = receive(self._live)
            if frames is None:
                break
            self._quiet_until = now + PROBE_SECONDS
            if len(frames) == 3:
                heard.append(self._order.live(int.from_bytes(frames[1], "big"), frames[2]))
        if self._replay is None and (self._order.missing or now >= self._quiet_until):
            self._begin_replay(now)
        if self._replay is not None:
            heard.extend(self._hear_replay(now, self._replay))
        return heard

    def _begin_replay(self, now: float) -> None:
        self._replay = self._connect(zmq.DEALER, replay_endpoint(self.events))
        self._asked = False
        self._replay_until = now + REPLAY_SECONDS
        self._quiet_until = self._replay_until + PROBE_SECONDS

    def _end_replay(self) -> None:
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def _hear_replay(self, now: float, replay: zmq.Socket[bytes]) -> list[InOrder]:
        heard = []
        if not self._asked:
            try:
                request = [b"", self._order.expected.to_bytes(8, "big")]
                replay.send_multipart(request, zmq.NOBLOCK)
                self._asked = True
            except zmq.Again:
                pass  # not connected; until the deadline
        over = now >= self._replay_until
        for _ in range(_BURST):
            frames = receive(replay)
            if frames is None:
                break
            if len(frames) == 4 and frames[2] != _REPLAY_OVER:
                number = int.from_bytes(frames[2], "big")
                heard.append(self._order.replayed(number, frames[3]))
            else:
                over = True
                break
        if over:
            self._end_replay()
            heard.append(self._order.replay_over())
        return heard

    def _connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, _EVENT_QUEUE)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_EVENT_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        else:
            socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.connect(endpoint)
        return socket


def listen_engine(context: zmq.Context[zmq.Socket[bytes]], uri: str) -> zmq.Socket[bytes]:
    """Where the engine tells what it holds of tenants; nothing where it has no such place."""
    socket: zmq.Socket[bytes] = context.socket(zmq.PULL)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, _TENANT_QUEUE)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)
    Path(uri.removeprefix("ipc://")).unlink(missing_ok=True)
    try:
        socket.bind(uri)
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError(f"cannot listen on {uri}: {error.strerror}") from None
    return socket


def receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """The next message's frames; None where there is none."""
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
