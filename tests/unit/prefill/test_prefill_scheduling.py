"""What leaves before a forward pass is complete before it."""

from __future__ import annotations

from typing import Any

from kvstore.tier import NoLookup
from prefill.scheduling import PrefillScheduling, Scheduled
from tests.support.engine_request import Request

BLOCK = 4


def scheduling(*names: str, length: int = 20) -> PrefillScheduling:
    subject = PrefillScheduling(NoLookup(), BLOCK, 30.0, lambda: 0.0)
    for number, name in enumerate(names):
        params: dict[str, Any] = {"kvferry": {"transfer": f"{number:032x}", "ttl_ms": 1000}}
        subject.added(Request(name, list(range(length)), "salt", params))
        assert subject.matched(name, 0) == 0
        subject.allocated(name, [], 0)
    return subject


def pages(supplies: list[Any]) -> dict[bytes, dict[int, int]]:
    return {supply.transfer: supply.pages for supply in supplies}


def test_what_is_cached_leaves_before_the_forward_pass() -> None:
    orders = scheduling("a").step([Scheduled("a", 12, 8, [5, 6, 7, 8, 9])])
    (before,) = pages(orders.supplies_before).values()
    (after,) = pages(orders.supplies_after).values()
    assert (before, after) == ({0: 5, 1: 6, 2: 7}, {3: 8, 4: 9})


def test_what_another_request_of_the_same_step_computes_leaves_after_it() -> None:
    """vLLM enters blocks into its cache when it plans them, not when they are computed."""
    orders = scheduling("a", "b").step(
        [
            Scheduled("a", 4, 16, [1, 2, 3, 4, 5]),
            Scheduled("b", 16, 4, [1, 2, 3, 4, 6]),
        ]
    )
    assert pages(orders.supplies_before) == {bytes(16): {0: 1}, bytes(15) + b"\x01": {0: 1}}
    assert pages(orders.supplies_after)[bytes(15) + b"\x01"] == {1: 2, 2: 3, 3: 4, 4: 6}


def test_a_preempted_request_supplies_its_new_pages() -> None:
    subject = scheduling("a")
    subject.step([Scheduled("a", 0, 20, [1, 2, 3, 4, 5])])
    subject.preempted(["a"])
    orders = subject.step([Scheduled("a", 0, 8, [11, 12, 13, 14, 15])])
    assert orders.withdrawals == [("a", bytes(16))]
    assert list(pages(orders.supplies_after).values()) == [{0: 11, 1: 12}]
