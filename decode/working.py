"""The worker half of decode: carries out a step's orders and reports completion, exactly once."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from decode.orders import FetchOrder, Orders
from decode.telling import Asked, Teller
from kvstore.clock import Clock
from kvstore.layout import KVLayout
from kvstore.messages import PROTOCOL_VERSION, Ready
from kvstore.receiving import Reservation
from kvstore.transfer import ready_mac
from kvstore.transport.fetcher import Fetch, Fetcher

IDLE_SECONDS = 0.01
"""Longest wait of an idle step; a new request may be held up by as much."""


@dataclass(frozen=True)
class Reports:
    """What the engine is told after a step: fetches that are over, and which of them failed."""

    loaded: set[str]
    failed: set[str]


class DecodeWorking:
    """Owned by the engine's worker thread of one rank."""

    def __init__(
        self,
        fetcher: Fetcher,
        teller: Teller,
        layout: KVLayout,
        key: bytes,
        me: tuple[str, str],
        clock: Clock,
    ) -> None:
        self._fetcher = fetcher
        self._teller = teller
        self._layout = layout
        self._key = key
        self._worker, self._generation = me
        self._clock = clock
        self._requests: dict[bytes, str] = {}
        self._patience = 0.0

    def before_forward(self, orders: Orders) -> None:
        """Stop what is no longer wanted, then ask for what is."""
        self._patience = IDLE_SECONDS if orders.idle else 0.0
        for transfer in orders.aborts:
            self._fetcher.abort(transfer)
        for order in orders.fetches:
            if any(order.block_ids):
                self._requests[order.transfer] = order.request
            self._teller.expect(order.transfer, self._asked(order))
            self._fetcher.fetch(self._fetch(order))
        for begun in orders.begun:
            self._teller.begun(begun)
        if orders.begun:
            self._fetcher.wake()

    def reports(self) -> Reports:
        """What has come to an end since the last call. Refusals of ours concern nobody.

        A step that computes nothing waits here for an end, so that an engine which only waits for
        KV does not spin: vLLM would ask a thousand times a second.
        """
        loaded, failed = set(), set()
        for ended in self._fetcher.take_ended(self._patience):
            request = self._requests.pop(ended.transfer, None)
            if request is not None:
                loaded.add(request)
                if ended.reason is not None:
                    failed.add(request)
        return Reports(loaded, failed)

    def stop(self) -> None:
        """End the thread behind this."""
        self._fetcher.stop()

    def _fetch(self, order: FetchOrder) -> Fetch:
        reservation = Reservation(
            transfer=order.transfer,
            peer=order.peer,
            sender_generation=order.sender_generation,
            first=order.first,
            block_ids=order.block_ids,
            deadline=order.deadline,
        )
        return Fetch(reservation, self._ready(order))

    def _asked(self, order: FetchOrder) -> Asked:
        return Asked(
            arrived=order.arrived,
            local_tokens=order.local_tokens,
            prompt_tokens=order.prompt_tokens,
            block_tokens=self._layout.block_size,
            block_bytes=self._layout.block_bytes,
        )

    def _ready(self, order: FetchOrder) -> Ready:
        left = max(0, round((order.deadline - self._clock()) * 1000))
        unsigned = Ready(
            version=PROTOCOL_VERSION,
            transfer=order.transfer,
            sender_generation=order.sender_generation,
            receiver=self._worker,
            receiver_generation=self._generation,
            fingerprint=self._layout.fingerprint,
            layout=self._layout.summary,
            first=order.first,
            stop=order.stop,
            blocks=order.prompt.blocks,
            carriage="frames",
            ttl_ms=left,
            mac=bytes(32),
        )
        return replace(unsigned, mac=ready_mac(self._key, unsigned, order.prompt))
