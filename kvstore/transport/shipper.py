"""The thread that ships complete pages to receiving ends.

The engine's thread supplies pages; this one has its sending end read them and send them off. One
lock guards the sender's state together with every read of the pages, so that ``withdraw`` is a
barrier: when it returns, pages it took back are no longer read by this process. (A receiver on
this host that reads them itself finds by their digests whether they were still what was meant.)

Bounds: what is on the way is limited by the sending end's staging and by each transfer's window;
when nothing may go the thread waits for news.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from kvstore.affinity import unbind_from_core
from kvstore.clock import Clock
from kvstore.errors import PeerGone, TransferError
from kvstore.layout import Place
from kvstore.messages import Cancel, Ready, Received
from kvstore.pages import KVPages
from kvstore.sending import SenderCore
from kvstore.transfer import Prompt
from kvstore.transport.ends import FromReceiver, SendingEnd

_IDLE_SECONDS = 0.5

log = logging.getLogger("kvferry.prefill")


class Shipper:
    """Ships one rank's pages. Methods are called by the engine's thread and return at once."""

    def __init__(self, core: SenderCore, pages: KVPages, end: SendingEnd, clock: Clock) -> None:
        self._core = core
        self._pages = pages
        self._end = end
        self._clock = clock
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._stopping = False
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="kvferry-ship", daemon=True)

    @property
    def uri(self) -> str:
        """Where receiving ends reach this rank."""
        return self._end.uri

    def start(self) -> None:
        """Begin shipping."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """End the thread and drop all connections. May be called again."""
        if self._stopping:
            return
        self._stopping = True
        self._end.wake()
        self._thread.join(seconds)
        self._end.close()

    def open(
        self, transfer: bytes, prompt: Prompt, lease_until: float, stop: int | None = None
    ) -> None:
        """The engine has taken up a prompt whose blocks before ``stop`` (None: all) are shipped."""
        with self._lock:
            self._core.open(transfer, prompt, lease_until, stop)
        self._end.wake()

    def fence(self) -> None:
        """Called by the engine's thread: pages it has computed may be read once this returns."""
        self._pages.fence()

    def supply(self, transfer: bytes, pages: Mapping[Place, int]) -> None:
        """These pages are complete: (KV group, position) to block id."""
        with self._lock:
            self._core.supply(transfer, pages)
        self._end.wake()

    def withdraw(self, transfer: bytes) -> None:
        """The engine takes its pages back; none of them is read once this returns."""
        with self._lock:
            self._core.withdraw(transfer)

    def close(self, transfer: bytes) -> None:
        """The engine is through with the prompt."""
        with self._lock:
            self._core.close(transfer)
        self._end.wake()

    def take_settled(self, wait_seconds: float = 0.0) -> list[bytes]:
        """Transfers whose pages are no longer needed; each once.

        Waits for one while any is under way. Raises TransferError when the thread has ended: the
        engine must end, and start anew.
        """
        if self._broken is not None:
            raise TransferError(f"the thread that ships KV ended: {self._broken!r}")
        with self._news:
            settled = self._core.take_settled()
            if wait_seconds and not settled and self._core.live():
                self._news.wait(wait_seconds)
                settled = self._core.take_settled()
            return settled

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - the outermost loop; told to the engine's thread
            self._broken = error

    def _serve(self) -> None:
        unbind_from_core()
        while not self._stopping:
            shipped = self._ship_one()  # first: most often it is a page that woke us
            received = self._receive()
            self._expire_and_reply()
            # What was heard may have been a lane's alone, which makes room and is nobody's message.
            if not received and not shipped and not self._ship_one():
                self._end.wait(_IDLE_SECONDS)

    def _receive(self) -> bool:
        arrival = self._end.receive()
        if arrival is None:
            return False
        with self._lock:
            self._apply(arrival)
            self._tell()
        return True

    def _tell(self) -> None:
        """End the engine thread's wait, if there is what it waits for."""
        if self._core.any_settled():
            self._news.notify()

    def _apply(self, arrival: FromReceiver) -> None:
        match arrival.message:
            case Ready() as ready:
                self._core.on_ready(arrival.peer, ready, self._clock())
            case Received() as received:
                self._core.on_received(arrival.peer, received)
            case Cancel() as cancel:
                self._core.on_cancel(arrival.peer, cancel)

    def _expire_and_reply(self) -> None:
        for peer in self._end.lost():
            self._lose(peer)
        with self._lock:
            self._core.expire(self._clock())
            replies = self._core.take_replies()
        for peer, failed in replies:
            log.warning("not shipping: %s (%s)", failed.reason, failed.detail)
            try:
                self._end.reply(peer, failed)
            except PeerGone:
                self._lose(peer)

    def _ship_one(self) -> bool:
        """Whether there was a batch that could go."""
        room = self._end.room()
        with self._lock:
            batch = self._core.next_batch(room)
            if batch is None:
                return False
            load = self._end.load(batch)
            self._core.sent(batch)
            self._tell()
        try:
            self._end.post(load)
        except PeerGone:
            self._lose(batch.peer)
        return True

    def _lose(self, peer: bytes) -> None:
        with self._lock:
            self._core.peer_lost(peer)
