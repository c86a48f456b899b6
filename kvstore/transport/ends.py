"""The two ends of a transport: what the threads that ship and fetch hold.

A :class:`SendingEnd` listens beside one rank's pages, a :class:`ReceivingEnd` dials any number of
them. Each belongs to one thread; only ``wake`` may be called from others. Nothing here waits
except ``wait``, and that as long as it is told.

Every transport passes ``tests/contract/test_transport_contract.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kvstore.messages import Blocks, Cancel, Carriage, Failed, Ready, Received
from kvstore.pages import KVPages
from kvstore.receiving import Placement
from kvstore.sending import Batch, Room


@dataclass(frozen=True)
class FromReceiver:
    """A message a sending end got, and from which connection."""

    peer: bytes
    message: Ready | Received | Cancel


@dataclass(frozen=True)
class Load:
    """A batch on its way out; ``buffer`` is the staging buffer that holds it, where one does."""

    peer: bytes
    message: Blocks
    carriage: Carriage
    route: bytes = b""
    buffer: int | None = None


class SendingEnd(Protocol):
    """Sends blocks of its pages to receivers that have reserved memory for them."""

    @property
    def uri(self) -> str:
        """Where receiving ends reach this one."""
        ...

    def receive(self) -> FromReceiver | None:
        """The next message that is well-formed and ours to get; None when there is none now."""
        ...

    def reply(self, peer: bytes, message: Failed) -> None:
        """Raises PeerGone when ``peer`` is gone or takes no more."""
        ...

    def lost(self) -> list[bytes]:
        """Receivers found gone since the last call, other than by a call that raised PeerGone."""
        ...

    def room(self) -> Room:
        """How many blocks could leave in a batch, until the next call of this end."""
        ...

    def load(self, batch: Batch) -> Load:
        """Read the batch's pages, which no other call does; there must be room for it."""
        ...

    def post(self, load: Load) -> None:
        """Send it. Raises PeerGone when the peer is gone or takes no more."""
        ...

    def wake(self) -> None: ...

    def wait(self, seconds: float) -> None:
        """Until there may be something to do, room for a batch among it, at most so long."""
        ...

    def close(self) -> None: ...


class Cargo(Protocol):
    """The bytes that came with a ``Blocks``, wherever they lie."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def place(self, pages: KVPages, placement: Placement) -> int | None:
        """Write the blocks into ``pages``, if each is what its digest says.

        Else the index of one that is not is returned, and nothing of them is left there.
        Raises PeerGone, as clean, when the bytes lie with a sender that is no longer there.
        """
        ...

    def release(self) -> None:
        """Whoever was given it is done with it, whether it was placed or not. May come again."""
        ...


@dataclass(frozen=True)
class FromSender:
    """A message a receiving end got, and from which address."""

    peer: str
    message: Blocks | Failed
    cargo: Cargo | None


class ReceivingEnd(Protocol):
    """Fetches blocks from sending ends, which it dials on demand."""

    def carriage(self, peer: str) -> tuple[Carriage, bytes] | None:
        """How, and by what route, blocks will come from ``peer``; None: not known yet, ask again.

        Raises PeerGone when it shares no carriage with that peer.
        """
        ...

    def send(self, peer: str, message: Ready | Received | Cancel) -> bool:
        """Whether ``message`` went out: False while there is no connection (yet, or at all)."""
        ...

    def receive(self) -> FromSender | None:
        """The next well-formed message of any sender; None when there is none now."""
        ...

    def lost(self) -> list[str]:
        """Senders whose connection broke since the last call; the next message dials anew."""
        ...

    def wake(self) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def close(self) -> None: ...
