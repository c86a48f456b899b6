"""One slice of prompts' KV, fetched from the worker that computes them, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from decode.orders import FetchOrder
from decode.telling import Asked, Teller
from kvstore.clock import Clock
from kvstore.layout import KVLayout
from kvstore.messages import PROTOCOL_VERSION, Begun, Ready
from kvstore.receiving import Ended, Reservation
from kvstore.slices import slice_address
from kvstore.transfer import ready_mac
from kvstore.transport.fetcher import Fetch, Fetcher


@dataclass(frozen=True)
class Receiver:
    """Who asks: a worker, in one generation of its, with the cluster's transport key."""

    worker: str
    generation: str
    key: bytes
    clock: Clock


class SliceFetching:
    """Asks for one slice. ``layout`` is the slice's own, and says which one it is."""

    def __init__(
        self, fetcher: Fetcher, teller: Teller, layout: KVLayout, receiver: Receiver
    ) -> None:
        self._fetcher = fetcher
        self._teller = teller
        self._layout = layout
        self._receiver = receiver

    def start(self) -> None:
        """Begin."""
        self._fetcher.start()

    def stop(self) -> None:
        """End the thread behind this."""
        self._fetcher.stop()

    def fence(self) -> None:
        """See Fetcher."""
        self._fetcher.fence()

    def fetch(self, order: FetchOrder) -> None:
        """Ask for what is ordered; ends exactly once in ``take_ended``."""
        self._teller.expect(order.transfer, self._asked(order))
        peer = slice_address(order.peer, self._layout.rank)
        reservation = Reservation(
            transfer=order.transfer,
            peer=peer,
            sender_generation=order.sender_generation,
            first=order.first,
            block_ids=order.block_ids,
            deadline=order.deadline,
        )
        self._fetcher.fetch(Fetch(reservation, self._ready(order)))

    def abort(self, transfer: bytes) -> None:
        """It is no longer wanted; nothing is written once this returns."""
        self._fetcher.abort(transfer)

    def begun(self, begun: list[Begun]) -> None:
        """These requests' first step is scheduled."""
        for one in begun:
            self._teller.begun(one)
        if begun:
            self._fetcher.wake()

    def take_ended(self, wait_seconds: float) -> list[Ended]:
        """Fetches that ended since the last call; see ``Fetcher.take_ended``."""
        return self._fetcher.take_ended(wait_seconds)

    def _asked(self, order: FetchOrder) -> Asked:
        return Asked(
            arrived=order.arrived,
            local_tokens=order.local_tokens,
            prompt_tokens=order.prompt_tokens,
            block_tokens=self._layout.block_size,
            block_bytes=self._layout.block_bytes,
        )

    def _ready(self, order: FetchOrder) -> Ready:
        me = self._receiver
        left = max(0, round((order.deadline - me.clock()) * 1000))
        unsigned = Ready(
            version=PROTOCOL_VERSION,
            transfer=order.transfer,
            sender_generation=order.sender_generation,
            receiver=me.worker,
            receiver_generation=me.generation,
            fingerprint=self._layout.fingerprint,
            layout=self._layout.summary,
            first=order.first,
            stop=order.stop,
            blocks=order.prompt.blocks,
            carriage="frames",
            ttl_ms=left,
            mac=bytes(32),
        )
        return replace(unsigned, mac=ready_mac(me.key, unsigned, order.prompt))
