"""The worker half of prefill: carries out a step's orders and reports completion, exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.ledger import CompletionLedger
from kvstore.tier import TierCopy, TierResult
from kvstore.transport.shipper import Shipper
from kvstore.wiping import Wiping
from prefill.orders import Opening, Orders, Supply

IDLE_SECONDS = 0.01
"""Longest wait of an idle step; a new request may be held up by as much."""


@dataclass(frozen=True)
class Reports:
    """What the engine is told after a step: requests whose blocks are free, loads that are over."""

    sent: set[str]
    loaded: set[str]
    failed: set[str]


class PrefillWorking:
    """Owned by the engine's worker thread of one rank, which ships one or more slices."""

    def __init__(self, shippers: Sequence[Shipper], tier: TierCopy, wiping: Wiping) -> None:
        self._shippers = shippers
        self._tier = tier
        self._wiping = wiping
        self._ledger = CompletionLedger()
        self._requests: dict[tuple[bytes, int], str] = {}
        self._loads: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._parked: set[str] = set()
        self._patience = 0.0

    def before_forward(self, orders: Orders) -> None:
        """Orders that must be carried out before pages are written again.

        What is complete already leaves at once, so that it travels under the forward pass.
        """
        for request, transfer in orders.withdrawals:
            self._tier.withdraw(request)
            if transfer is not None:
                for shipper in self._shippers:
                    shipper.withdraw(transfer)
        self._wiping.carry_out(orders.wipes)
        for opening in orders.openings:
            self._open(opening)
        if orders.supplies_before:
            self._shippers[0].fence()  # on a device an earlier step may still be writing them
        self._supply(orders.supplies_before)
        for load in orders.loads:
            self._tier.load(load)
            self._loads[load.request] += 1
        self._parked.update(orders.parked)
        # The DRAM tier wakes nobody; while it loads, only vLLM's own pace is short enough.
        waits = orders.idle and not self._loads and not orders.wipes.blocks
        self._patience = IDLE_SECONDS if waits else 0.0

    def after_forward(self, orders: Orders) -> None:
        """Orders about pages that the forward pass has just completed."""
        if orders.supplies_after or orders.stores:
            self._shippers[0].fence()  # The slices are of the same pages.
        self._supply(orders.supplies_after)
        for store in orders.stores:
            self._ledger.begin(store.request, store.op)
            self._tier.store(store)
        for transfer in orders.closings:
            for shipper in self._shippers:
                shipper.close(transfer)
        self._failed.update(orders.resumed)  # Nothing was loaded for them.
        self._ledger.release([*orders.released, *orders.resumed])

    def reports(self) -> Reports:
        """What has come to an end since the last call.

        A step that computes nothing waits here for a transfer's end, so that an engine which only
        holds pages does not spin: vLLM would ask a thousand times a second.
        """
        patience = self._patience
        for number, shipper in enumerate(self._shippers):
            for transfer in shipper.take_settled(patience):
                part, patience = (transfer, number), 0.0
                self._ledger.settle(self._requests.pop(part), part)
        loaded = set()
        for result in self._tier.drain():
            if result.kind == "store":
                self._ledger.settle(result.request, result.op_id)
            elif self._load_ended(result):
                loaded.add(result.request)
        done = self._ledger.collect()
        # The engine takes these to be loading: it frees their blocks when that ends, and once.
        parked = done & self._parked
        self._parked -= parked
        loaded |= parked
        failed = loaded & self._failed
        self._failed -= failed
        return Reports(done - parked, loaded, failed)

    def _open(self, opening: Opening) -> None:
        for number, shipper in enumerate(self._shippers):
            part = opening.transfer, number
            self._requests[part] = opening.request
            self._ledger.begin(opening.request, part)
            shipper.open(opening.transfer, opening.prompt, opening.lease_until, opening.stop)

    def _supply(self, supplies: list[Supply]) -> None:
        for supply in supplies:
            for shipper in self._shippers:
                shipper.supply(supply.transfer, supply.pages)

    def _load_ended(self, result: TierResult) -> bool:
        """Whether it was the last of its request's: chunks and window are loaded apart."""
        if not result.ok:
            self._failed.add(result.request)
        self._loads[result.request] -= 1
        if self._loads[result.request]:
            return False
        del self._loads[result.request]
        return True

    def stop(self) -> None:
        """End the threads behind this."""
        for shipper in self._shippers:
            shipper.stop()
        self._tier.close()
