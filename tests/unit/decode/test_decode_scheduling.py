"""The scheduler half of decode: each transfer is used once, and every end is told once."""

from __future__ import annotations

import pytest

from decode.scheduling import DecodeScheduling
from kvstore.clock import Clock
from kvstore.layout import KVGroup
from kvstore.messages import Begun
from tests.support.engine_request import Request

BLOCK = 4
TICKET = {
    "type": "fetch",
    "transfer": "0" * 31 + "1",
    "ttl_ms": 2000,
    "ship": "zmq+ipc:///p",
    "sender_generation": "g",
}


LOCAL = {"type": "local", "transfer": "0" * 31 + "1"}
TRANSFER = bytes(15) + b"\x01"


def scheduling(
    length: int = 10,
    ticket: object = TICKET,
    clock: Clock = lambda: 100.0,
    groups: tuple[KVGroup, ...] = (KVGroup(),),
) -> DecodeScheduling:
    subject = DecodeScheduling(groups, BLOCK, clock)
    params: dict[str, object] | None = {"kvferry": ticket} if ticket else None
    subject.added(Request("r", list(range(length)), kv_transfer_params=params))
    return subject


def test_all_that_is_not_here_is_fetched_into_the_reserved_blocks() -> None:
    subject = scheduling()
    assert subject.matched("r", 4) == 5  # The last token is computed here.
    assert subject.matched("r", 4) == 5  # vLLM may ask again before it reserves
    subject.allocated("r", [[7, 8, 9]], 5)
    (order,) = subject.step().fetches
    assert (order.first, order.stop, order.block_ids) == ((1,), 3, ((8, 9),))
    assert order.local_tokens == 4
    assert order.prompt.blocks == 3
    assert (order.arrived, order.deadline) == (100.0, 102.0)
    subject.allocated("r", [[7, 8, 9]], 0)  # vLLM calls again after the load
    assert subject.step().fetches == []


@pytest.mark.parametrize("computed", [8, 9])
def test_a_tail_of_less_than_a_block_is_computed_and_the_sender_told(computed: int) -> None:
    subject = scheduling()
    assert subject.matched("r", computed) == 0
    (order,) = subject.step().fetches
    assert (order.first, order.stop, order.block_ids) == ((0,), 0, ((),))


@pytest.mark.parametrize(("held", "fetched", "stop"), [(4, 9, 3), (8, 8, 2), (12, 8, 2)])
def test_the_tail_of_what_the_sender_holds_is_computed_here(
    held: int, fetched: int, stop: int
) -> None:
    subject = scheduling(ticket=TICKET | {"held": held})
    assert subject.matched("r", 0) == fetched
    subject.allocated("r", [[7, 8, 9]], fetched)
    (order,) = subject.step().fetches
    assert (order.first, order.stop, order.block_ids) == ((0,), stop, ((7, 8, 9)[:stop],))


def test_a_failed_fetch_is_not_asked_for_again() -> None:
    subject = scheduling()
    subject.matched("r", 0)
    subject.allocated("r", [[1, 2, 3]], 9)
    subject.step()
    subject.fetched(["r"])
    assert subject.matched("r", 0) == 0
    subject.finished("r")
    orders = subject.step()
    assert (orders.aborts, orders.fetches) == ([], [])


def test_leaving_while_fetching_aborts() -> None:
    subject = scheduling()
    subject.matched("r", 0)
    subject.allocated("r", [[1, 2, 3]], 9)
    subject.step()
    subject.finished("r")
    assert subject.step().aborts == [bytes(15) + b"\x01"]


def test_an_engine_that_refuses_the_load_declines_it() -> None:
    subject = scheduling()
    subject.matched("r", 0)
    subject.allocated("r", [[1, 2, 3]], 0)  # prompt_logprobs: vLLM skips what we offered
    (order,) = subject.step().fetches
    assert (order.stop, order.block_ids) == (0, ((),))


def test_leaving_before_anything_was_reserved_tells_the_sender() -> None:
    subject = scheduling()
    subject.finished("r")
    (order,) = subject.step().fetches
    assert (order.stop, order.block_ids) == (0, ((),))
    subject.finished("r")
    assert subject.step().fetches == []


def test_a_transfer_is_used_once() -> None:
    subject = scheduling()
    subject.added(Request("again", [1] * 10, kv_transfer_params={"kvferry": TICKET}))
    assert subject.matched("again", 0) == 0


@pytest.mark.parametrize(
    "ticket", [None, {"transfer": "x"}, {**TICKET, "more": 1}, {**LOCAL, "ttl_ms": 1}, 7]
)
def test_no_or_a_malformed_ticket_means_computing_here(ticket: object) -> None:
    subject = scheduling(ticket=ticket)
    assert subject.matched("r", 0) == 0
    subject.finished("r")
    orders = subject.step()
    assert (orders.aborts, orders.fetches) == ([], [])


@pytest.mark.parametrize("ticket", [TICKET, LOCAL])
def test_a_requests_first_step_is_told_once(ticket: object) -> None:
    times = iter([100.0, 100.5, 103.0, 104.0])
    subject = scheduling(ticket=ticket, clock=lambda: next(times))
    assert subject.step(["another"]).begun == []
    assert subject.step(["r", "another"]).begun == [Begun(TRANSFER, 100.0, 103.0)]
    assert subject.step(["r"]).begun == []


def test_a_local_ticket_fetches_nothing() -> None:
    subject = scheduling(ticket=LOCAL)
    assert subject.matched("r", 0) == 0
    subject.allocated("r", [[1, 2, 3]], 0)
    assert subject.step(["r"]).fetches == []


def test_one_that_left_before_it_began_is_not_told() -> None:
    subject = scheduling(ticket=LOCAL)
    subject.finished("r")
    orders = subject.step(["r"])
    assert (orders.begun, orders.aborts, orders.fetches) == ([], [], [])


SLIDING = (KVGroup(("s",), 6), KVGroup(("f",)))


@pytest.mark.parametrize(
    ("length", "local", "first", "stop"),
    [
        (10, 0, (1, 0), 3),  # token 9 attends to 4 … 9
        (9, 0, (0, 0), 2),  # to 3 … 8; its own block holds nothing that is sent
        (22, 0, (4, 0), 6),  # to 16 … 21
        (22, 12, (4, 3), 6),
        (22, 16, (4, 4), 6),
    ],
)
def test_of_a_sliding_group_only_what_the_last_token_attends_to_is_fetched(
    length: int, local: int, first: tuple[int, int], stop: int
) -> None:
    subject = scheduling(length, groups=SLIDING)
    external = subject.matched("r", local)
    assert external == length - 1 - local
    tables = [[0] * first[0] + list(range(10, 16)), list(range(30, 40))]
    subject.allocated("r", tables, external)
    (order,) = subject.step().fetches
    assert (order.first, order.stop) == (first, stop)
    assert order.block_ids == tuple(
        tuple(table[at:stop]) for at, table in zip(first, tables, strict=True)
    )
