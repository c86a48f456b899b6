"""A stream socket and nothing else: the most that a transport over one connection could reach."""

from __future__ import annotations

import socket
import time
from typing import Literal

from bench.transport.case import Case
from bench.transport.ends.end import MOVE_SECONDS, Bystander, Room, TransportFailed
from bench.transport.frames import Moved

Family = Literal["tcp", "unix"]


class RawSender(Bystander):
    """Dials, and writes pages as they lie in memory."""

    def __init__(self, room: Room, family: Family) -> None:
        self._memory = room.pages.reshape(-1).data
        self._socket = _socket(family)
        self._family = family

    def meet(self, offer: str) -> None:
        """See End."""
        if self._family == "tcp":
            host, _, port = offer.rpartition(":")
            self._socket.connect((host, int(port)))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self._socket.connect(offer)

    def move(self, case: Case) -> Moved:
        """See End."""
        began = time.monotonic()
        self._socket.sendall(self._memory[: case.size])
        return Moved(began=began)

    def close(self) -> None:
        """See End."""
        self._socket.close()


class RawReceiver(Bystander):
    """Listens, and reads into memory in place."""

    def __init__(self, room: Room, family: Family) -> None:
        self._memory = room.pages.reshape(-1).data
        self._listener = _socket(family)
        self._listener.bind(("127.0.0.1", 0) if family == "tcp" else str(room.folder / "raw"))
        self._listener.listen(1)
        name = self._listener.getsockname()
        self.offer = f"{name[0]}:{name[1]}" if family == "tcp" else name
        self._socket: socket.socket | None = None

    def meet(self, offer: str) -> None:
        """See End."""
        self._socket, _ = self._listener.accept()
        self._socket.settimeout(MOVE_SECONDS)

    def move(self, case: Case) -> Moved:
        """See End."""
        assert self._socket is not None
        memory, at = self._memory[: case.size], 0
        while at < case.size:
            count = self._socket.recv_into(memory[at:])
            if not count:
                raise TransportFailed("the raw socket was closed by its other end")
            at += count
        return Moved(ended=time.monotonic())

    def close(self) -> None:
        """See End."""
        if self._socket is not None:
            self._socket.close()
        self._listener.close()


def _socket(family: Family) -> socket.socket:
    made = socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX)
    made.settimeout(MOVE_SECONDS)
    return made
