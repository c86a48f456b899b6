"""A rank that fetches several slices reports a request once: when the last of them has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from decode.orders import FetchOrder, Orders
from decode.working import DecodeWorking
from kvstore.messages import FailReason
from kvstore.receiving import Ended
from kvstore.transfer import Prompt
from kvstore.wiping import Wipes, Wiping
from tests.support.wipes import CountedWipes, no_wiping

TRANSFER = bytes(16)


class Slice:
    """Ends what it fetches when told."""

    def __init__(self) -> None:
        self.over: list[Ended] = []
        self.fetched: list[bytes] = []
        self.aborted: list[bytes] = []
        self.fetched_at_fence = -1

    def fence(self) -> None:
        self.fetched_at_fence = len(self.fetched)

    def fetch(self, order: FetchOrder) -> None:
        self.fetched.append(order.transfer)

    def abort(self, transfer: bytes) -> None:
        self.aborted.append(transfer)

    def begun(self, begun: list[Any]) -> None:
        return

    def take_ended(self, wait_seconds: float) -> list[Ended]:
        over, self.over = self.over, []
        return over

    def end(self, reason: FailReason | None) -> None:
        self.over.append(Ended(TRANSFER, reason, "", 1, 1, 0.0))


def order(wanted: bool = True) -> FetchOrder:
    ids = ((1,),) if wanted else ((),)
    return FetchOrder(
        transfer=TRANSFER,
        request="r",
        peer="zmq+ipc:///p",
        sender_generation="g",
        prompt=Prompt("s", bytes(32), 1),
        first=(0,),
        stop=int(wanted),
        block_ids=ids,
        local_tokens=0,
        prompt_tokens=4,
        arrived=0.0,
        deadline=9.0,
    )


def working(*slices: Slice) -> DecodeWorking:
    return DecodeWorking(cast("Any", slices), no_wiping())


@pytest.mark.parametrize("reasons", [(None, None), ("deadline", None), (None, "deadline")])
def test_the_last_slice_ends_the_request(reasons: tuple[FailReason | None, ...]) -> None:
    slices = Slice(), Slice()
    subject = working(*slices)
    subject.before_forward(Orders(fetches=[order()]))
    assert [part.fetched for part in slices] == [[TRANSFER], [TRANSFER]]
    slices[1].end(reasons[0])
    assert not subject.reports().loaded
    # One that failed ends the others: the engine will compute the prompt whatever they bring.
    assert bool(slices[0].aborted) == (reasons[0] is not None)
    slices[0].end(reasons[1])
    reports = subject.reports()
    assert reports.loaded == {"r"}
    assert reports.failed == (set() if reasons == (None, None) else {"r"})
    slices[0].end(None)
    assert not subject.reports().loaded


def test_a_refusal_concerns_nobody() -> None:
    part = Slice()
    subject = working(part)
    subject.before_forward(Orders(fetches=[order(wanted=False)]))
    part.end(None)
    assert not subject.reports().loaded


def test_what_an_earlier_step_writes_is_written_before_it_is_fetched_into() -> None:
    one = Slice()
    subject = working(one, Slice())
    subject.before_forward(Orders())
    assert one.fetched_at_fence == -1
    subject.before_forward(Orders(fetches=[order()]))
    assert one.fetched_at_fence == 0
    assert one.fetched == [TRANSFER]


def test_pages_are_overwritten_once_nothing_is_written_and_before_anything_is_fetched() -> None:
    pages, part = CountedWipes(), Slice()
    seen: list[tuple[int, int]] = []

    class Pages(CountedWipes):
        def wipe(self, blocks: Sequence[int]) -> None:
            seen.append((len(part.aborted), len(part.fetched)))
            pages.wipe(blocks)

    wiping = Wiping(Pages())
    subject = DecodeWorking(cast("Any", [part]), wiping)
    orders = Orders(aborts=[TRANSFER], wipes=Wipes(2, [5]), fetches=[order()], idle=True)
    subject.before_forward(orders)
    assert (seen, pages.wiped, wiping.take_done()) == ([(1, 0)], [5], 2)
    assert len(part.fetched) == 1
