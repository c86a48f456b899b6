"""A poller that other threads can wake."""

from __future__ import annotations

import math
import os
from typing import Any, TypeAlias

import zmq

Pollable: TypeAlias = "zmq.Socket[Any]"
"""What ends a wait when it becomes readable."""


class Polled:
    """A ZeroMQ context and a poller over its sockets; for one thread, but for ``wake``."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._wake, zmq.POLLIN)

    def add(self, socket: Pollable) -> None:
        """End waits when ``socket`` is readable."""
        self._poller.register(socket, zmq.POLLIN)

    def remove(self, socket: Pollable) -> None:
        """Undo ``add``."""
        self._poller.unregister(socket)

    def wake(self) -> None:
        """End the current or next ``wait`` at once. Safe from any thread."""
        os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float) -> None:
        """Return when there is something to do, or after ``seconds``."""
        ready = dict(self._poller.poll(max(0, math.ceil(seconds * 1000))))
        if self._wake in ready:
            os.eventfd_read(self._wake)

    def close(self) -> None:
        """Drop all sockets."""
        self.context.destroy(linger=0)
        os.close(self._wake)
