"""A poller that other threads can wake."""

from __future__ import annotations

import math
import os
import threading
from typing import Any, TypeAlias

import zmq

AT_ONCE = 64
"""Messages of one socket looked at before others have their turn: nonsense keeps nobody waiting."""

_READABLE = int(zmq.POLLIN)

Pollable: TypeAlias = "zmq.Socket[Any]"
"""What ends a wait when it becomes readable."""


def readable(socket: Pollable) -> bool:
    """Whether a message can be received now: cheaper than to try, or to poll."""
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & _READABLE)


class Polled:
    """A ZeroMQ context and a poller over its sockets; for one thread, but for ``wake``."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = threading.Lock()
        self._closed = False
        self._poller = zmq.Poller()
        self._poller.register(self._wake, zmq.POLLIN)

    def add(self, socket: Pollable) -> None:
        """End waits when ``socket`` is readable."""
        self._poller.register(socket, zmq.POLLIN)

    def remove(self, socket: Pollable) -> None:
        """Undo ``add``."""
        self._poller.unregister(socket)

    def wake(self) -> None:
        """End the current or next ``wait`` at once. Safe from any thread, and after ``close``."""
        with self._open:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float) -> None:
        """Return when there is something to do, or after ``seconds``."""
        ready = dict(self._poller.poll(max(0, math.ceil(seconds * 1000))))
        if self._wake in ready:
            os.eventfd_read(self._wake)

    def close(self) -> None:
        """Drop all sockets."""
        self.context.destroy(linger=0)
        with self._open:
            self._closed = True
            os.close(self._wake)
