"""What leaves before a forward pass is complete before it."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.handoff import PrefillReport
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


class Holding(NoLookup):
    """A tier that holds eight tokens of any prompt."""

    chunk_tokens = 8

    def poll(self, request: str) -> int:
        return 8


@pytest.mark.parametrize(
    ("local", "computed", "gpu", "dram"),
    [
        (4, 8, 4, 4),  # half of the chunk was in engine memory
        (0, 7, 0, 8),  # all of the prompt was loaded: its last token is computed all the same
        (4, 4, 4, 0),  # the load failed
    ],
)
def test_a_report_tells_when_it_began_and_what_was_loaded(
    local: int, computed: int, gpu: int, dram: int
) -> None:
    times = iter([5.0, 6.0, 6.25])
    subject = PrefillScheduling(Holding(), BLOCK, 30.0, lambda: next(times))
    ticket: dict[str, object] = {"kvferry": {"transfer": "0" * 32, "ttl_ms": 1000}}
    subject.added(Request("r", list(range(20)), "salt", ticket))
    external = subject.matched("r", local)
    assert external == 8 - local
    subject.allocated("r", [1, 2, 3, 4, 5], external)
    subject.step([])
    assert subject.report("r") is None
    subject.loaded(["r"])
    for done in (computed, computed + 4):
        subject.step([Scheduled("r", done, 4, [1, 2, 3, 4, 5])])
    assert subject.report("r") == PrefillReport(250.0, gpu, dram)
    subject.finished("r")
    assert subject.report("r") is None
