"""What a decode worker's fetching thread and its HTTP gate tell each other, on one host.

The connector's end hears of ended fetches and begun requests and passes them on; the gate's end
awaits them, and tells of transfers that nobody will send any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import zmq

from kvstore.codec import encode, well_formed
from kvstore.messages import Abandon, Begun, GateMessage, Outcome

_QUEUE = 1024


class ConnectorLink:
    """The connector's end. For a poller: ``socket`` is readable when ``abandoned`` has some."""

    def __init__(self, *, gate: str, abandon: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reports, self.socket = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        self._reports.setsockopt(zmq.SNDHWM, _QUEUE)
        self.socket.setsockopt(zmq.RCVHWM, _QUEUE)
        self._reports.connect(gate)
        self.socket.bind(abandon)

    def report(self, message: Outcome | Begun) -> bool:
        """Tell the gate; False when nobody takes it (the gate then knows nothing of it)."""
        try:
            self._reports.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def abandoned(self) -> list[bytes]:
        """Transfers the gate has given up since the last call."""
        transfers: list[bytes] = []
        while True:
            try:
                message = well_formed(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return transfers
            if isinstance(message, Abandon):
                transfers.append(message.transfer)

    def close(self) -> None:
        """Drop both ends."""
        self._context.destroy(linger=0)


class GateLink:
    """The HTTP gate's end: awaits reports, sends abandons. For asyncio: poll ``fileno``.

    ``abandon``: the address of each slice's connector.
    """

    def __init__(self, *, gate: str, abandon: Sequence[str]) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reports = self._context.socket(zmq.PULL)
        self._abandons = [self._context.socket(zmq.PUSH) for _ in abandon]
        self._reports.setsockopt(zmq.RCVHWM, _QUEUE)
        self._reports.bind(gate)
        for socket, address in zip(self._abandons, abandon, strict=True):
            socket.setsockopt(zmq.SNDHWM, _QUEUE)
            socket.connect(address)

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
                message = well_formed(self._reports.recv(zmq.NOBLOCK))
            except zmq.Again:
                return found
            if isinstance(message, Outcome | Begun):
                found.append(message)

    def send(self, message: GateMessage) -> bool:
        """Whether every slice's connector took it."""
        taken = True
        for socket in self._abandons:
            try:
                socket.send(encode(message), zmq.NOBLOCK)
            except zmq.Again:
                taken = False
        return taken

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
