"""One block there and back over ZeroMQ: what two processes pay for a word and its answer."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np
import zmq

from bench.transport.case import BLOCK_BYTES, Case
from bench.transport.ends.end import MOVE_SECONDS, Room
from bench.transport.frames import Moved

Scheme = Literal["tcp", "ipc"]


class _Pong:
    """What both ends share: a PAIR socket with a deadline on every wait."""

    offer = ""

    def __init__(self, room: Room) -> None:
        self._page = room.pages[0]
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[Any] = self._context.socket(zmq.PAIR)
        for option in (zmq.RCVTIMEO, zmq.SNDTIMEO):
            self._socket.setsockopt(option, int(MOVE_SECONDS * 1000))

    def meet(self, offer: str) -> None:
        """See End."""

    def arm(self, case: Case) -> None:
        """See End."""

    def close(self) -> None:
        """See End."""
        self._context.destroy(linger=0)


class PingSender(_Pong):
    """Sends the block and awaits it back."""

    def meet(self, offer: str) -> None:
        """See End."""
        self._socket.connect(offer)

    def move(self, case: Case) -> Moved:
        """See End."""
        began = time.monotonic()
        self._socket.send(self._page.data, copy=False)
        self._socket.recv(copy=False)
        return Moved(began, time.monotonic())


class PingReceiver(_Pong):
    """Sends back what it gets."""

    def __init__(self, room: Room, scheme: Scheme) -> None:
        super().__init__(room)
        where = "127.0.0.1:*" if scheme == "tcp" else str(room.folder / "ping")
        self._socket.bind(f"{scheme}://{where}")
        bound = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self.offer = bound.rstrip(bytes(1)).decode()

    def move(self, case: Case) -> Moved:
        """See End."""
        frame = self._socket.recv(copy=False)
        self._socket.send(frame, copy=False)
        received = np.frombuffer(frame.buffer, dtype=np.uint8)
        np.copyto(self._page, received[:BLOCK_BYTES])
        return Moved()
