"""The thread that fetches blocks from prefill workers into reserved pages.

One lock guards the receiver's state together with every write to the pages, so that ``abort`` is
a barrier: when it returns, no byte is written into that transfer's pages any more.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import xxhash

from kvstore.affinity import unbind_from_core
from kvstore.clock import Clock
from kvstore.errors import TransferError
from kvstore.messages import Begun, Blocks, Cancel, Outcome, Ready, Received
from kvstore.pages import KVPages
from kvstore.receiving import Ended, Placement, ReceiverCore, Reservation
from kvstore.transport.wire import DecodeWire, FromSender

_IDLE_SECONDS = 0.5
_DIALLING_SECONDS = 0.001
_OUTBOX = 1024
"""Messages kept for a peer that cannot be reached; beyond it the oldest are dropped."""

log = logging.getLogger("kvferry.decode")


@dataclass(frozen=True)
class Fetch:
    """One transfer to fetch: where to put it, and the message that asks for it.

    The request joined the engine's queue at ``arrived``. ``local_tokens`` of the prompt were cached
    here; a block holds ``block_tokens``.
    """

    reservation: Reservation
    ready: Ready
    arrived: float
    local_tokens: int
    prompt_tokens: int
    block_tokens: int


class Receiver:
    """Fetches one rank's blocks. Methods are called by the engine's thread and return at once."""

    def __init__(self, core: ReceiverCore, pages: KVPages, wire: DecodeWire, clock: Clock) -> None:
        self._core = core
        self._pages = pages
        self._wire = wire
        self._clock = clock
        self._block_bytes = pages.layers * pages.page_bytes
        self._fetches: dict[bytes, Fetch] = {}
        self._outbox: dict[str, deque[Ready | Received | Cancel]] = {}
        self._done: list[Ended] = []
        self._begun: list[Begun] = []
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
        self._wire.wake()
        self._thread.join(seconds)
        self._wire.close()

    def fetch(self, fetch: Fetch) -> None:
        """Memory is reserved; fetch the blocks. Ends exactly once in ``take_ended``."""
        transfer = fetch.reservation.transfer
        with self._lock:
            self._fetches[transfer] = fetch
            self._post(fetch.reservation.peer, fetch.ready)
            self._core.begin(fetch.reservation, self._clock())
        self._wire.wake()

    def abort(self, transfer: bytes) -> None:
        """The engine no longer wants it; nothing is written once this returns."""
        with self._lock:
            self._core.abandon(transfer, self._clock())
        self._wire.wake()

    def tell(self, begun: Begun) -> None:
        """A request's first step is scheduled; the gate learns it after the fetch's end."""
        with self._lock:
            self._begun.append(begun)
        self._wire.wake()

    def take_ended(self, wait_seconds: float = 0.0) -> list[Ended]:
        """Transfers that ended since the last call; waits for one while any is under way.

        Raises TransferError when the thread has ended: the engine must end, and start anew.
        """
        if self._broken is not None:
            raise TransferError(f"the thread that fetches KV ended: {self._broken!r}")
        with self._news:
            if wait_seconds and not self._done and self._fetches:
                self._news.wait(wait_seconds)
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
            received = self._receive()
            self._observe()
            self._send()
            self._finish()
            if not received:
                self._wire.wait(self._patience())

    def _patience(self) -> float:
        with self._lock:
            deadline = self._core.next_deadline()
            if any(self._outbox.values()):
                return _DIALLING_SECONDS
        return min(_IDLE_SECONDS, deadline - self._clock()) if deadline else _IDLE_SECONDS

    def _receive(self) -> bool:
        arrival = self._wire.receive()
        if arrival is None:
            return False
        with self._lock:
            if isinstance(arrival.message, Blocks):
                self._place(arrival, arrival.message)
            else:
                self._core.on_failed(arrival.peer, arrival.message, self._clock())
        return True

    def _place(self, arrival: FromSender, message: Blocks) -> None:
        now = self._clock()
        placement = self._core.accept(arrival.peer, message, len(arrival.payload), now)
        if placement is None:
            return
        damaged = self._damaged(placement, arrival.payload)
        if damaged is not None:
            self._core.corrupt(placement, damaged, now)
            return
        for index, block in enumerate(placement.block_ids):
            page = np.frombuffer(self._slice(arrival.payload, index), dtype=np.uint8)
            self._pages.scatter(block, page)
        self._core.placed(placement, self._clock())

    def _slice(self, payload: memoryview, index: int) -> memoryview:
        return payload[index * self._block_bytes : (index + 1) * self._block_bytes]

    def _damaged(self, placement: Placement, payload: memoryview) -> int | None:
        """The position of the first block that is not what was sent; None when all are."""
        for index, digest in enumerate(placement.digests):
            if xxhash.xxh3_128_digest(self._slice(payload, index)) != digest:
                return placement.first + index
        return None

    def _observe(self) -> None:
        lost, abandoned = self._wire.lost(), self._wire.abandoned()
        with self._lock:
            now = self._clock()
            for peer in lost:
                self._outbox.pop(peer, None)
                self._core.peer_lost(peer, now)
            for transfer in abandoned:
                self._core.abandon(transfer, now)
            self._core.expire(now)

    def _post(self, peer: str, message: Ready | Received | Cancel) -> None:
        self._outbox.setdefault(peer, deque(maxlen=_OUTBOX)).append(message)

    def _send(self) -> None:
        """Send what is due, in order per peer; a peer that is not there yet keeps its turn."""
        with self._lock:
            for peer, message in self._core.take_outgoing():
                self._post(peer, message)
            for peer, box in self._outbox.items():
                while box and self._wire.send(peer, box[0]):
                    box.popleft()

    def _finish(self) -> None:
        with self._lock:
            ended = self._core.take_ended()
            begun, self._begun = self._begun, []
            fetches = [self._fetches.pop(end.transfer) for end in ended]
        for end, fetch in zip(ended, fetches, strict=True):
            if end.reason is not None:
                log.warning("recomputing: %s (%s)", end.reason, end.detail)
            self._wire.report(self._outcome(end, fetch))
        for told in begun:  # what they may have fetched has ended: in this turn or an earlier one
            self._wire.report(told)
        if ended:
            with self._news:
                self._done.extend(ended)
                self._news.notify()

    def _outcome(self, end: Ended, fetch: Fetch) -> Outcome:
        received = min(
            end.received_blocks * fetch.block_tokens, fetch.prompt_tokens - fetch.local_tokens
        )
        return Outcome(
            transfer=end.transfer,
            shipped=end.reason is None,
            local_tokens=fetch.local_tokens,
            received_tokens=received,
            received_bytes=end.received_blocks * self._block_bytes,
            wait_ms=max(0.0, end.at - fetch.arrived) * 1000,
            reason=end.reason,
        )
