"""A request's loads are reported together: chunks and window are copied apart."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kvstore.tier import NoCopy, TierOp, TierResult
from prefill.orders import Orders
from prefill.working import PrefillWorking


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


class Idle:
    """A shipper with nothing to ship."""

    def take_settled(self, wait_seconds: float) -> list[bytes]:
        return []


@pytest.mark.parametrize("outcomes", [(True, True), (True, False), (False, True), (False, False)])
def test_a_load_is_over_with_its_last_part_and_fails_with_any(outcomes: tuple[bool, bool]) -> None:
    tier = Copies()
    working = PrefillWorking(cast("Any", Idle()), tier)
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
