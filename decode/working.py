"""The worker half of decode: carries out a step's orders and reports completion, exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decode.fetching import SliceFetching
from decode.orders import FetchOrder, Orders
from kvstore.receiving import Ended
from kvstore.wiping import Wiping

IDLE_SECONDS = 0.01
"""Longest wait of an idle step; a new request may be held up by as much."""


@dataclass(frozen=True)
class Reports:
    """What the engine is told after a step: fetches that are over, and which of them failed."""

    loaded: set[str]
    failed: set[str]


@dataclass
class _Awaited:
    request: str
    slices: int
    failed: bool = False


class DecodeWorking:
    """Owned by the engine's worker thread of one rank, which fetches one or more slices."""

    def __init__(self, slices: Sequence[SliceFetching], wiping: Wiping) -> None:
        self._slices = slices
        self._wiping = wiping
        self._awaited: dict[bytes, _Awaited] = {}
        self._patience = 0.0

    def before_forward(self, orders: Orders) -> None:
        """Stop what is no longer wanted, overwrite what was freed, then ask for what is wanted."""
        self._patience = IDLE_SECONDS if orders.idle and not orders.wipes.blocks else 0.0
        for transfer in orders.aborts:
            self._abort(transfer)
        self._wiping.carry_out(orders.wipes)
        if orders.fetches:
            self._slices[0].fence()  # on a device an earlier step may still write what it was given
        for order in orders.fetches:
            self._fetch(order)
        for part in self._slices:
            part.begun(orders.begun)

    def reports(self) -> Reports:
        """What has come to an end since the last call. Refusals of ours concern nobody.

        A step that computes nothing waits here for an end, so that an engine which only waits for
        KV does not spin: vLLM would ask a thousand times a second.
        """
        patience, over = self._patience, []
        for part in self._slices:
            for ended in part.take_ended(patience):
                over += self._ended(ended)
                patience = 0.0
        return Reports({one.request for one in over}, {one.request for one in over if one.failed})

    def stop(self) -> None:
        """End the threads behind this."""
        for part in self._slices:
            part.stop()

    def _fetch(self, order: FetchOrder) -> None:
        if any(order.block_ids):
            self._awaited[order.transfer] = _Awaited(order.request, len(self._slices))
        for part in self._slices:
            part.fetch(order)

    def _abort(self, transfer: bytes) -> None:
        for part in self._slices:
            part.abort(transfer)

    def _ended(self, ended: Ended) -> list[_Awaited]:
        """The request whose last slice this was, if it was. One that fails ends the others."""
        awaited = self._awaited.get(ended.transfer)
        if awaited is None:
            return []
        if ended.reason is not None and not awaited.failed:
            awaited.failed = True
            self._abort(ended.transfer)
        awaited.slices -= 1
        if awaited.slices:
            return []
        return [self._awaited.pop(ended.transfer)]
