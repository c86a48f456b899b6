"""What a worker's connectors and its HTTP gate tell each other, on one host.

A connector tells what became of requests and the gate awaits it. The gate of a decode worker tells
of transfers that nobody will send any more. In the same way a connector tells the worker's relay
what it holds of tenants.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import zmq

from kvstore.codec import encode, well_formed
from kvstore.messages import Abandon, GateReport, Usage, Wiped

_QUEUE = 1024


class ReportLink:
    """The end of a connector that has something to tell."""

    def __init__(self, to: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reports = self._context.socket(zmq.PUSH)
        self._reports.setsockopt(zmq.SNDHWM, _QUEUE)
        self._reports.connect(to)

    def report(self, message: GateReport | Usage | Wiped) -> bool:
        """Tell it; False when nobody takes it, who then knows nothing of it."""
        try:
            self._reports.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Drop everything."""
        self._context.destroy(linger=0)


class ConnectorLink(ReportLink):
    """And is told. For a poller: ``socket`` is readable when ``abandoned`` has some."""

    def __init__(self, *, gate: str, abandon: str) -> None:
        super().__init__(gate)
        self.socket = self._context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.RCVHWM, _QUEUE)
        self.socket.bind(abandon)

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


class GateLink:
    """The HTTP gate's end: awaits reports, sends abandons. For asyncio: poll ``fileno``.

    ``abandon``: the address of each connector that is to be told.
    """

    def __init__(self, *, gate: str, abandon: Sequence[str] = ()) -> None:
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

    def reports(self) -> list[GateReport]:
        """What the connectors have told since the last call, in order."""
        found: list[GateReport] = []
        while True:
            try:
                message = well_formed(self._reports.recv(zmq.NOBLOCK))
            except zmq.Again:
                return found
            if isinstance(message, GateReport):
                found.append(message)

    def send(self, message: Abandon) -> bool:
        """Whether every connector took it."""
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
