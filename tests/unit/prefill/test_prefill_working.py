"""A request's loads are reported together: chunks and window are copied apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from kvstore.tier import NoCopy, TierOp, TierResult
from kvstore.transfer import Prompt
from kvstore.wiping import Wipes, Wiping
from prefill.orders import Opening, Orders, Supply
from prefill.working import PrefillWorking
from tests.support.wipes import no_wiping


class Copies(NoCopy):
    """A tier whose loads end when they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[TierResult] = []

    def load(self, op: TierOp) -> None:
        return

    def drain(self) -> list[TierResult]:
        results, self.results = self.results, []
        return results


class Slice:
    """A shipper that settles when told."""

    def __init__(self) -> None:
        self.settled: list[bytes] = []
        self.calls: list[str] = []

    def open(self, *what: object) -> None:
        self.calls.append("open")

    def supply(self, *what: object) -> None:
        self.calls.append("supply")

    def withdraw(self, transfer: bytes) -> None:
        self.calls.append("withdraw")

    def close(self, transfer: bytes) -> None:
        self.calls.append("close")

    def fence(self) -> None:
        return

    def take_settled(self, wait_seconds: float) -> list[bytes]:
        settled, self.settled = self.settled, []
        return settled


@pytest.mark.parametrize("outcomes", [(True, True), (True, False), (False, True), (False, False)])
def test_a_load_is_over_with_its_last_part_and_fails_with_any(outcomes: tuple[bool, bool]) -> None:
    tier = Copies()
    working = PrefillWorking([cast("Any", Slice())], tier, no_wiping())
    ops = [TierOp(number, "r", [1], "s", 0, 1, [1]) for number in range(2)]
    working.before_forward(Orders(loads=ops))
    first, last = (
        TierResult(op.op, "r", "load", ok, 1, None) for op, ok in zip(ops, outcomes, strict=True)
    )
    tier.results = [first]
    assert not working.reports().loaded
    tier.results = [last]
    reports = working.reports()
    assert reports.loaded == {"r"}
    assert reports.failed == (set() if all(outcomes) else {"r"})
    assert not working.reports().loaded


def test_pages_are_overwritten_when_nobody_reads_them_any_more_and_before_they_are_loaded() -> None:
    done: list[str] = []

    class Pages:
        def wipe(self, blocks: Sequence[int]) -> None:
            done.append(f"wipe {blocks}")

    class Tier(Copies):
        def load(self, op: TierOp) -> None:
            done.append("load")

    part = Slice()
    part.calls = done
    wiping = Wiping(Pages())
    working = PrefillWorking([cast("Any", part)], Tier(), wiping)
    orders = Orders(
        withdrawals=[("r", bytes(16))],
        wipes=Wipes(4, [5, 6]),
        loads=[TierOp(0, "s", [1], "s", 0, 1, [5])],
    )
    working.before_forward(orders)
    assert done == ["withdraw", "wipe [5, 6]", "load"]
    assert wiping.take_done() == 4


def test_a_request_is_free_when_every_slice_of_it_has_settled() -> None:
    slices = Slice(), Slice()
    working = PrefillWorking(cast("Any", slices), NoCopy(), no_wiping())
    transfer = bytes(16)
    opening = Opening(transfer, "r", Prompt("s", bytes(32), 1), 9.0, 1)
    supply = Supply(transfer, {(0, 0): 1})
    orders = Orders(
        withdrawals=[("r", transfer)],
        openings=[opening],
        supplies_before=[supply],
        supplies_after=[supply],
        closings=[transfer],
        released=["r"],
    )
    working.before_forward(orders)
    working.after_forward(orders)
    for part in slices:
        assert part.calls == ["withdraw", "open", "supply", "supply", "close"]
    slices[1].settled = [transfer]
    assert not working.reports().sent
    slices[0].settled = [transfer]
    assert working.reports().sent == {"r"}
