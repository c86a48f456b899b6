"""The thread that fetches blocks from sending ends into reserved pages.

One lock guards the receiver's state together with every write to the pages, so that ``abort`` is
a barrier: when it returns, no byte is written into that transfer's pages any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from kvstore.affinity import unbind_from_core
from kvstore.clock import Clock
from kvstore.errors import PeerGone, TransferError
from kvstore.messages import Blocks, Cancel, Ready, Received
from kvstore.pages import KVPages
from kvstore.receiving import Ended, ReceiverCore, Reservation
from kvstore.transport.ends import Cargo, FromSender, ReceivingEnd

_IDLE_SECONDS = 0.5
_DIALLING_SECONDS = 0.001
_ANSWERED_BYTES, _MESSAGE_BYTES = 4 << 20, 1 << 20
"""What may come before anything is answered, so that answers of a burst go out together; and what
a message counts as at least."""

_GIVE_WAY_SECONDS = 30e-6
"""What the engine's thread, woken, gets to take the interpreter lock; it would else have to wait
until this thread has nothing left to do: 0.2 ms later, measured with one block."""

_OUTBOX = 1024
"""Messages kept for a peer that cannot be reached; beyond it the oldest are dropped."""

_SOON_SECONDS, _LATER_SECONDS = 1.0, 0.05
"""A connection stands soon, where there is anybody; who is not there then is looked for less."""

_TELLING_SECONDS = 5.0
"""How long it is tried to tell a sender that it need not send."""

log = logging.getLogger("kvferry.decode")


@dataclass
class _Box:
    """Messages for a sender, the latest of them put in at ``since``."""

    messages: deque[Ready | Received | Cancel] = field(
        default_factory=lambda: deque(maxlen=_OUTBOX)
    )
    since: float = 0.0


@dataclass(frozen=True)
class Fetch:
    """One transfer to fetch: where to put it, and the message that asks for it.

    How it is carried is filled in when the peer is reached.
    """

    reservation: Reservation
    ready: Ready


class Audience(Protocol):
    """Who hears of ends before the engine does, in the fetching thread, and may give up more."""

    def ended(self, ends: list[Ended]) -> None:
        """Told in every turn, mostly of nothing."""
        ...

    def abandoned(self) -> list[bytes]:
        """Transfers that nobody will send any more."""
        ...

    def close(self) -> None: ...


class Nobody:
    """An audience that does not listen."""

    def ended(self, ends: list[Ended]) -> None:
        """See Audience."""

    def abandoned(self) -> list[bytes]:
        """See Audience."""
        return []

    def close(self) -> None:
        """See Audience."""


class Fetcher:
    """Fetches one rank's blocks. Methods are called by the engine's thread and return at once."""

    def __init__(
        self,
        core: ReceiverCore,
        pages: KVPages,
        end: ReceivingEnd,
        clock: Clock,
        audience: Audience | None = None,
    ) -> None:
        self._core = core
        self._pages = pages
        self._end = end
        self._clock = clock
        self._audience: Audience = audience or Nobody()
        self._outbox: dict[str, _Box] = {}
        self._done: list[Ended] = []
        self._awaited = False
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._stopping = False
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="kvferry-fetch", daemon=True)

    def start(self) -> None:
        """Begin fetching."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """End the thread and drop all connections. May be called again."""
        if self._stopping:
            return
        self._stopping = True
        self._end.wake()
        self._thread.join(seconds)
        self._end.close()
        self._audience.close()

    def fence(self) -> None:
        """Called by the engine's thread: what it has queued for its pages is done on return."""
        self._pages.fence()

    def fetch(self, fetch: Fetch) -> None:
        """Memory is reserved; fetch the blocks. Ends exactly once in ``take_ended``."""
        with self._lock:
            self._core.begin(fetch.reservation, self._clock())
            self._post(fetch.reservation.peer, fetch.ready)
        self._end.wake()

    def abort(self, transfer: bytes) -> None:
        """The engine no longer wants it; nothing is written once this returns."""
        with self._lock:
            self._core.abandon(transfer, self._clock())
        self._end.wake()

    def wake(self) -> None:
        """The audience has something to do or to say."""
        self._end.wake()

    def take_ended(self, wait_seconds: float = 0.0) -> list[Ended]:
        """Transfers that ended since the last call; waits for one while any is under way.

        Raises TransferError when the thread has ended: the engine must end, and start anew.
        """
        if self._broken is not None:
            raise TransferError(f"the thread that fetches KV ended: {self._broken!r}")
        with self._news:
            if wait_seconds and not self._done and self._core.live():
                self._awaited = True
                self._news.wait(wait_seconds)
                self._awaited = False
            done, self._done = self._done, []
        return done

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - the outermost loop; told to the engine's thread
            self._broken = error

    def _serve(self) -> None:
        unbind_from_core()
        while not self._stopping:
            received = self._receive_some()
            self._finish()  # first: the engine waits for what has just come to its end
            self._send()
            self._observe()
            self._finish()
            if not received:
                self._end.wait(self._patience())

    def _patience(self) -> float:
        now = self._clock()
        with self._lock:
            deadline = self._core.next_deadline()
            waited = min((now - box.since for box in self._outbox.values()), default=None)
        if waited is not None:
            return _DIALLING_SECONDS if waited < _SOON_SECONDS else _LATER_SECONDS
        return min(_IDLE_SECONDS, deadline - self._clock()) if deadline else _IDLE_SECONDS

    def _receive_some(self) -> int:
        """About as many bytes as have come."""
        count = 0
        while count < _ANSWERED_BYTES and (received := self._receive()):
            count += received
        return count

    def _receive(self) -> int:
        arrival = self._end.receive()
        if arrival is None:
            return 0
        with self._lock:
            if isinstance(arrival.message, Blocks):
                assert arrival.cargo is not None
                self._place(arrival, arrival.message, arrival.cargo)
            else:
                self._core.on_failed(arrival.peer, arrival.message, self._clock())
        if arrival.cargo is not None:
            arrival.cargo.release()
        return _MESSAGE_BYTES if arrival.cargo is None else max(_MESSAGE_BYTES, arrival.cargo.size)

    def _place(self, arrival: FromSender, message: Blocks, cargo: Cargo) -> None:
        now = self._clock()
        placement = self._core.accept(arrival.peer, message, cargo.size, now)
        if placement is None:
            return
        try:
            damaged = cargo.place(self._pages, placement)
        except PeerGone as error:
            self._core.peer_lost(arrival.peer, str(error), now)
            return
        if damaged is None:
            self._core.placed(placement, self._clock())
        else:
            self._core.corrupt(placement, placement.first + damaged, now)

    def _observe(self) -> None:
        lost, abandoned = self._end.lost(), self._audience.abandoned()
        with self._lock:
            for peer in lost:
                self._lose(peer, f"lost the connection to {peer}")
            for transfer in abandoned:
                self._core.abandon(transfer, self._clock())
            self._core.expire(self._clock())

    def _lose(self, peer: str, detail: str) -> None:
        self._outbox.pop(peer, None)
        self._core.peer_lost(peer, detail, self._clock())

    def _post(self, peer: str, message: Ready | Received | Cancel) -> None:
        box = self._outbox.setdefault(peer, _Box())
        box.messages.append(message)
        box.since = self._clock()

    def _send(self) -> None:
        """Send what is due, in order per peer; a peer that is not there yet keeps its turn."""
        with self._lock:
            for peer, message in self._core.take_outgoing():
                self._post(peer, message)
            for peer, box in list(self._outbox.items()):
                try:
                    self._send_to(peer, box.messages)
                except PeerGone as error:
                    self._lose(peer, str(error))
                if not box.messages or self._given_up(peer, box):
                    self._outbox.pop(peer, None)

    def _given_up(self, peer: str, box: _Box) -> bool:
        """Nothing is awaited from there any more, and nobody there to be told."""
        waited = self._clock() - box.since
        return waited > _TELLING_SECONDS and not self._core.awaits(peer)

    def _send_to(self, peer: str, box: deque[Ready | Received | Cancel]) -> None:
        carriage = self._end.carriage(peer)
        while box and carriage is not None:
            message = box[0]
            if isinstance(message, Ready):
                message = replace(message, carriage=carriage[0], route=carriage[1])
            if not self._end.send(peer, message):
                return
            box.popleft()

    def _finish(self) -> None:
        with self._lock:
            ended = self._core.take_ended()
        for end in ended:
            if end.reason is not None:
                log.warning("recomputing: %s (%s)", end.reason, end.detail)
        self._audience.ended(ended)
        if ended:
            with self._news:
                self._done.extend(ended)
                self._news.notify()
            if self._awaited:
                time.sleep(_GIVE_WAY_SECONDS)
