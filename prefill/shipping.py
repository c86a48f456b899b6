"""The thread that ships complete pages to decode workers.

The engine's thread supplies pages; this one gathers them into staging buffers, hashes and sends
them. One lock guards the sender's state together with every read of the pages, so that
``withdraw`` is a barrier: when it returns, pages it took back are no longer read.

Bounds: ``BUFFERS`` staging buffers of ``batch_blocks`` blocks each, whatever the number of peers;
when all are on the way the thread waits for ZeroMQ to return one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xxhash

from kvstore.affinity import unbind_from_core
from kvstore.clock import Clock
from kvstore.errors import TransferError
from kvstore.messages import Blocks, Cancel, Ready, Received
from kvstore.pages import Bytes, KVPages
from kvstore.sending import Batch, SenderCore
from kvstore.transfer import Prompt
from kvstore.transport.wire import FromReceiver, PeerGone, PrefillWire, Sending

BUFFERS = 16
_BATCH_BYTES = 1 << 20
_IDLE_SECONDS = 0.5
_FULL_SECONDS = 0.001

log = logging.getLogger("kvferry.prefill")


@dataclass
class Staging:
    """Buffers of one batch each, faulted in once and kept. A buffer is free when ZeroMQ is."""

    block_bytes: int
    batch_blocks: int
    _buffers: list[Bytes] = field(default_factory=list)
    _in_flight: list[Sending | None] = field(default_factory=list)

    @classmethod
    def of(cls, block_bytes: int) -> Staging:
        """Buffers for blocks of this size, about ``_BATCH_BYTES`` each and at least one block."""
        staging = cls(block_bytes, max(1, _BATCH_BYTES // block_bytes))
        for _ in range(BUFFERS):
            staging._buffers.append(np.ones(staging.batch_blocks * block_bytes, dtype=np.uint8))
            staging._in_flight.append(None)
        return staging

    def free(self) -> int | None:
        """The number of a buffer that may be written, None when all are on the way."""
        for number, sending in enumerate(self._in_flight):
            if sending is None or sending.done:
                self._in_flight[number] = None
                return number
        return None

    def buffer(self, number: int) -> Bytes:
        """The memory of buffer ``number``."""
        return self._buffers[number]

    def lend(self, number: int, sending: Sending) -> None:
        """ZeroMQ reads this buffer until ``sending`` is done."""
        self._in_flight[number] = sending


class Shipper:
    """Ships one rank's pages. Methods are called by the engine's thread and return at once."""

    def __init__(
        self,
        core: SenderCore,
        pages: KVPages,
        wire: PrefillWire,
        generation: str,
        clock: Clock,
    ) -> None:
        self._core = core
        self._pages = pages
        self._wire = wire
        self._generation = generation
        self._clock = clock
        self._staging = Staging.of(pages.layers * pages.page_bytes)
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._stopping = False
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="kvferry-ship", daemon=True)

    def start(self) -> None:
        """Begin shipping."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """End the thread and drop all connections. May be called again."""
        if self._stopping:
            return
        self._stopping = True
        self._wire.wake()
        self._thread.join(seconds)
        self._wire.close()

    def open(self, transfer: bytes, prompt: Prompt, lease_until: float) -> None:
        """The engine has taken up a prompt that is to be shipped."""
        with self._lock:
            self._core.open(transfer, prompt, lease_until)
        self._wire.wake()

    def fence(self) -> None:
        """Called by the engine's thread: pages it has computed may be read once this returns."""
        self._pages.fence()

    def supply(self, transfer: bytes, pages: Mapping[int, int]) -> None:
        """These pages (position to block id) are complete."""
        with self._lock:
            self._core.supply(transfer, pages)
        self._wire.wake()

    def withdraw(self, transfer: bytes) -> None:
        """The engine takes its pages back; none of them is read once this returns."""
        with self._lock:
            self._core.withdraw(transfer)

    def close(self, transfer: bytes) -> None:
        """The engine is through with the prompt."""
        with self._lock:
            self._core.close(transfer)
        self._wire.wake()

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
            received = self._receive()
            self._expire_and_reply()
            waited_for = self._ship_one()
            if not received and waited_for is not None:
                self._wire.wait(waited_for)

    def _receive(self) -> bool:
        arrival = self._wire.receive()
        if arrival is None:
            return False
        with self._lock:
            self._apply(arrival)
        return True

    def _apply(self, arrival: FromReceiver) -> None:
        match arrival.message:
            case Ready() as ready:
                self._core.on_ready(arrival.peer, ready, self._clock())
            case Received() as received:
                self._core.on_received(arrival.peer, received)
            case Cancel() as cancel:
                self._core.on_cancel(arrival.peer, cancel)

    def _expire_and_reply(self) -> None:
        with self._lock:
            self._core.expire(self._clock())
            replies = self._core.take_replies()
        for peer, failed in replies:
            log.warning("not shipping: %s (%s)", failed.reason, failed.detail)
            try:
                self._wire.send(peer, failed)
            except PeerGone:
                self._lose(peer)

    def _ship_one(self) -> float | None:
        """Ship one batch; None when more may be ready, else how long to wait for news."""
        number = self._staging.free()
        if number is None:
            return _FULL_SECONDS
        buffer = self._staging.buffer(number)
        with self._lock:
            batch = self._core.next_batch(self._staging.batch_blocks)
            if batch is None:
                return _IDLE_SECONDS
            self._gather(batch, buffer)
            self._core.sent(batch)
            self._news.notify()
        self._send(batch, buffer, number)
        return None

    def _gather(self, batch: Batch, buffer: Bytes) -> None:
        size = self._staging.block_bytes
        for index, block in enumerate(batch.block_ids):
            self._pages.gather(block, buffer[index * size : (index + 1) * size])

    def _send(self, batch: Batch, buffer: Bytes, number: int) -> None:
        size, count = self._staging.block_bytes, len(batch.block_ids)
        digests = tuple(
            xxhash.xxh3_128_digest(buffer[index * size : (index + 1) * size].data)
            for index in range(count)
        )
        message = Blocks(batch.transfer, self._generation, batch.first, digests)
        try:
            sending = self._wire.send_blocks(batch.peer, message, buffer[: count * size])
        except PeerGone:
            self._lose(batch.peer)
        else:
            self._staging.lend(number, sending)

    def _lose(self, peer: bytes) -> None:
        with self._lock:
            self._core.peer_lost(peer)
