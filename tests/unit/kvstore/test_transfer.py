"""The rules of the sending and the receiving core, one by one."""

from dataclasses import replace as replace_fields

import pytest
from msgspec.structs import replace

from kvstore.layout import KVLayout
from kvstore.messages import PROTOCOL_VERSION, Blocks, Cancel, Ready, Received
from kvstore.receiving import ReceiverCore, Reservation
from kvstore.sending import EARLY_SECONDS, SenderCore
from kvstore.transfer import Prompt, ready_mac

KEY = b"k" * 32
T = b"t" * 16
PEER = b"decode-0"
URI = "zmq+ipc:///prefill"
BLOCK_BYTES = 8
LAYOUT = KVLayout("m", "e", "bf16", "auto", "LBHNC", "cpu", 32, 2, 4, 0, 1)
PROMPT = Prompt(salt="s" * 64, digest=b"d" * 32, blocks=5)


def sender(window: int = 32, limit: int = 8) -> SenderCore:
    return SenderCore("gen", LAYOUT, KEY, window=window, limit=limit)


def pages(positions: range, offset: int = 0) -> dict[tuple[int, int], int]:
    """Of the only group, each in the page of its number plus ``offset``."""
    return {(0, at): offset + at for at in positions}


def ready(first: int = 0, prompt: Prompt = PROMPT, **changes: object) -> Ready:
    unsigned = Ready(
        version=PROTOCOL_VERSION,
        transfer=T,
        sender_generation="gen",
        receiver="decode-0",
        receiver_generation="r",
        fingerprint=LAYOUT.fingerprint,
        layout=LAYOUT.summary,
        first=(first,),
        stop=prompt.blocks,
        blocks=prompt.blocks,
        carriage="frames",
        ttl_ms=1000,
        mac=bytes(32),
    )
    return replace(signed(unsigned, prompt), **changes)


def signed(unsigned: Ready, prompt: Prompt = PROMPT) -> Ready:
    return replace(unsigned, mac=ready_mac(KEY, unsigned, prompt))


def drain(core: SenderCore, limit: int = 2) -> list[tuple[int, tuple[int, ...]]]:
    sent = []
    while batch := core.next_batch(lambda _carriage, _peer, _under_way: limit):
        sent.append((batch.first, batch.block_ids))
        core.sent(batch)
    return sent


@pytest.mark.parametrize(("stop", "first"), [(4, 0), (3, 2), (5, 0)])
def test_what_only_is_shipped_awaits_its_receiver_after_its_leg_has_ended(
    stop: int, first: int
) -> None:
    """Its last block, which is not whole, is the receiver's to compute."""
    core = sender()
    core.open(T, PROMPT, 10.0, stop=4)
    core.supply(T, pages(range(4)))
    core.close(T)
    assert core.take_settled() == []
    core.on_ready(PEER, signed(replace(ready(first), stop=stop)), 0.0)
    failed = stop > 4
    assert [failure.reason for _, failure in core.take_replies()] == ["prefill-failed"] * failed
    assert drain(core, 9) == ([] if failed else [(first, tuple(range(first, stop)))])
    assert core.take_settled() == [T]


ARRIVALS = ["open", "supply", "ready"]


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [2, 0, 1]])
def test_the_order_of_opening_supply_and_ready_does_not_matter(order: list[int]) -> None:
    core = sender()
    for step in order:
        if ARRIVALS[step] == "open":
            core.open(T, PROMPT, 10.0)
        elif ARRIVALS[step] == "supply":
            core.supply(T, pages(range(5), 100))
        else:
            core.on_ready(PEER, ready(first=1), 0.0)
    assert drain(core) == [(1, (101, 102)), (3, (103, 104))]
    assert core.take_settled() == [T]
    assert core.take_settled() == []


def test_a_window_holds_back_what_is_not_acknowledged() -> None:
    core = sender(window=2)
    core.open(T, PROMPT, 10.0)
    core.supply(T, pages(range(5)))
    core.on_ready(PEER, ready(), 0.0)
    assert drain(core) == [(0, (0, 1))]
    core.on_received(b"somebody else", Received(T, 0, 2))
    assert drain(core) == []
    core.on_received(PEER, Received(T, 0, 1))
    assert drain(core) == [(2, (2,))]


REFUSALS = [
    ("protocol", {"version": 99}),
    ("stale-generation", {"sender_generation": "old"}),
    ("layout-mismatch", {"fingerprint": b"x" * 32}),
    ("not-authentic", {"mac": b"x" * 32}),
    ("not-authentic", {"receiver_generation": "other"}),
    ("not-authentic", {"first": (1,)}),
    ("not-authentic", {"stop": 4}),
]


@pytest.mark.parametrize(("reason", "change"), REFUSALS)
def test_a_receiver_that_is_not_right_is_refused(reason: str, change: dict[str, object]) -> None:
    core = sender()
    core.open(T, PROMPT, 10.0)
    core.supply(T, pages(range(5)))
    core.on_ready(PEER, replace(ready(), **change), 0.0)
    assert [failed.reason for _, failed in core.take_replies()] == [reason]
    assert drain(core) == []


def test_another_tenants_salt_opens_nothing() -> None:
    core = sender()
    core.open(T, PROMPT, 10.0)
    core.supply(T, pages(range(5)))
    core.on_ready(PEER, ready(prompt=replace_fields(PROMPT, salt="o" * 64)), 0.0)
    assert [failed.reason for _, failed in core.take_replies()] == ["not-authentic"]
    assert drain(core) == []


def test_a_layout_mismatch_names_both_sides() -> None:
    core = sender()
    core.on_ready(PEER, ready(fingerprint=b"x" * 32, layout="THEIRS"), 0.0)
    detail = core.take_replies()[0][1].detail
    assert "THEIRS" in detail
    assert LAYOUT.summary in detail


def test_only_its_receiver_can_cancel_a_transfer() -> None:
    core = sender()
    core.open(T, PROMPT, 10.0)
    core.on_ready(PEER, ready(), 0.0)
    core.on_cancel(b"somebody else", Cancel(T))
    assert core.take_settled() == []
    core.on_cancel(PEER, Cancel(T))
    assert core.take_settled() == [T]


def test_withdrawn_pages_are_not_sent_until_supplied_again() -> None:
    core = sender()
    core.open(T, PROMPT, 10.0)
    core.on_ready(PEER, ready(), 0.0)
    core.supply(T, pages(range(2), 7))
    batch = core.next_batch(lambda _carriage, _peer, _under_way: 1)
    assert batch is not None
    core.sent(batch)
    core.withdraw(T)
    assert drain(core) == []
    core.supply(T, pages(range(5), 50))
    assert drain(core, 8) == [(1, (51, 52, 53, 54))]


def test_a_prompt_that_ends_early_fails_its_receiver_at_once_even_a_late_one() -> None:
    core = sender()
    core.open(T, PROMPT, 10.0)
    core.supply(T, {(0, 0): 1})
    core.close(T)
    assert core.take_settled() == [T]
    core.on_ready(PEER, ready(), 0.0)
    assert [failed.reason for _, failed in core.take_replies()] == ["prefill-failed"]
    assert core.live() == 0


def test_a_lease_ends() -> None:
    core = sender()
    core.open(T, PROMPT, 10.0)
    core.supply(T, pages(range(5)))
    core.expire(9.9)
    assert core.take_settled() == []
    core.expire(10.0)
    assert core.take_settled() == [T]


def test_early_receivers_are_bounded() -> None:
    core = sender(limit=1)
    core.on_ready(PEER, ready(), 0.0)
    core.on_ready(PEER, replace(ready(), transfer=b"u" * 16), 0.0)
    assert [failed.reason for _, failed in core.take_replies()] == ["overloaded"]
    core.expire(1.0)
    assert core.live() == 0


def test_early_receivers_hold_no_place_for_longer_than_we_say() -> None:
    core = sender(limit=1)
    core.on_ready(PEER, replace(ready(), ttl_ms=1 << 32), 0.0)
    core.expire(EARLY_SECONDS)
    assert core.live() == 0


def test_a_repeated_ready_has_no_effect_and_a_second_receiver_is_refused() -> None:
    core = sender()
    core.open(T, PROMPT, 10.0)
    core.supply(T, pages(range(2)))
    core.on_ready(PEER, ready(), 0.0)
    assert drain(core) == [(0, (0, 1))]
    core.on_ready(PEER, ready(), 0.0)
    assert core.take_replies() == []
    core.on_ready(b"somebody else", ready(), 0.0)
    assert [(peer, failed.reason) for peer, failed in core.take_replies()] == [
        (b"somebody else", "protocol")
    ]
    core.supply(T, pages(range(5)))
    assert drain(core, 8) == [(2, (2, 3, 4))]


def reservation(first: int = 0, count: int = 5) -> Reservation:
    return Reservation(T, URI, "gen", (first,), (tuple(range(20, 20 + count)),), 10.0)


def blocks(first: int, count: int = 1, generation: str = "gen") -> Blocks:
    digests = tuple(b"%16d" % at for at in range(first, first + count))
    return Blocks(T, generation, 0, first, digests)


def test_blocks_of_an_old_generation_or_another_peer_have_no_effect() -> None:
    core = ReceiverCore(BLOCK_BYTES)
    core.begin(reservation(), 0.0)
    assert core.accept(URI, blocks(0, generation="old"), BLOCK_BYTES, 1.0) is None
    assert core.accept("elsewhere", blocks(0), BLOCK_BYTES, 1.0) is None
    assert core.take_ended() == []
    assert core.accept(URI, blocks(0), BLOCK_BYTES, 1.0) is not None


@pytest.mark.parametrize(
    ("message", "payload"),
    [(blocks(1), BLOCK_BYTES), (blocks(0, 6), 6 * BLOCK_BYTES), (blocks(0), BLOCK_BYTES - 1)],
)
def test_blocks_that_cannot_be_right_end_the_transfer(message: Blocks, payload: int) -> None:
    core = ReceiverCore(BLOCK_BYTES)
    core.begin(reservation(), 0.0)
    assert core.accept(URI, message, payload, 1.0) is None
    assert [end.reason for end in core.take_ended()] == ["protocol"]
    assert core.take_outgoing() == [(URI, Cancel(T))]


def test_acknowledgements_of_one_group_go_as_one_those_of_others_stay() -> None:
    core, elsewhere = ReceiverCore(BLOCK_BYTES), "elsewhere"
    core.begin(reservation(), 0.0)
    core.begin(replace_fields(reservation(), peer=elsewhere, transfer=b"u" * 16), 0.0)
    for peer, message in (
        (URI, blocks(0, 2)),
        (URI, blocks(2)),
        (elsewhere, replace(blocks(0), transfer=b"u" * 16)),
        (URI, blocks(3)),
    ):
        size = len(message.digests) * BLOCK_BYTES
        placement = core.accept(peer, message, size, 1.0)
        assert placement is not None
        core.placed(placement, 1.0)
    assert core.take_outgoing() == [
        (URI, Received(T, 0, 3)),
        (elsewhere, Received(b"u" * 16, 0, 1)),
        (URI, Received(T, 0, 4)),
    ]


def test_a_damaged_block_ends_the_transfer() -> None:
    core = ReceiverCore(BLOCK_BYTES)
    core.begin(reservation(), 0.0)
    placement = core.accept(URI, blocks(0), BLOCK_BYTES, 1.0)
    assert placement is not None
    core.corrupt(placement, 0, 1.0)
    assert [end.reason for end in core.take_ended()] == ["digest-mismatch"]
    assert core.accept(URI, blocks(0), BLOCK_BYTES, 1.0) is None


def test_a_transfer_abandoned_before_it_began_ends_when_it_begins() -> None:
    core = ReceiverCore(BLOCK_BYTES)
    core.abandon(T, 0.0)
    assert core.take_ended() == []
    core.begin(reservation(), 1.0)
    assert [end.reason for end in core.take_ended()] == ["abandoned"]
