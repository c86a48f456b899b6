"""The relay's pure parts: engine events in order, copies counted, subscribers told."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from kvstore import engine_events, relay_core
from kvstore.engine_events import (
    Cleared,
    Event,
    EventDecoder,
    EventOrder,
    InOrder,
    Removed,
    Stored,
)
from kvstore.errors import WireError
from kvstore.messages import (
    PROTOCOL_VERSION,
    Announce,
    Delta,
    Drain,
    Engaged,
    Snapshot,
    Subscribe,
)
from kvstore.relay_core import RelayCore, Told
from tests.support import announcing

NAMES = [bytes([i]) * 16 for i in range(9)]
HASHES = [name + b"tail" * 4 for name in NAMES]


def announce() -> Announce:
    return msgspec.structs.replace(announcing.announce(), state="starting")


def wish(
    generation: str = "", seq: int = 0, version: int = PROTOCOL_VERSION, proxy: str = "p"
) -> Subscribe:
    return Subscribe(version=version, proxy=proxy, generation=generation, seq=seq)


def stored(core: RelayCore, *names: bytes) -> list[Delta]:
    return core.apply("gpu", [Stored(names)])


def batch(*events: dict[str, object]) -> bytes:
    return msgspec.msgpack.encode([0.5, list(events), 0])


# --- what an engine says


def test_events_lose_tokens_and_salts_and_keep_their_order() -> None:
    tokens = {"token_ids": [1] * 32, "extra_keys": [["salt"]], "parent_block_hash": None}
    payload = batch(
        {"type": "BlockStored", "block_hashes": HASHES[:2], "medium": "GPU", **tokens},
        {"type": "BlockRemoved", "block_hashes": HASHES[:1], "medium": "GPU", "group_idx": 0},
        {"type": "AllBlocksCleared"},
        {"type": "BlockStored", "block_hashes": [], "medium": "GPU"},
    )
    assert EventDecoder().decode(payload) == [
        Stored((NAMES[0], NAMES[1])),
        Removed((NAMES[0],)),
        Cleared(),
        Stored(()),
    ]


def test_other_tiers_are_not_ours() -> None:
    payload = batch({"type": "BlockStored", "block_hashes": HASHES[:1], "medium": "CPU"})
    assert EventDecoder().decode(payload) == []


def test_a_block_is_held_while_full_attention_holds_it() -> None:
    decoder = EventDecoder()
    event = {"block_hashes": HASHES[:1], "medium": "GPU"}
    sliding = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 512}
    stored = batch(
        {"type": "BlockStored", "group_idx": 0, **event, **sliding},
        {"type": "BlockStored", "group_idx": 1, **event, "kv_cache_spec_kind": "full_attention"},
    )
    assert decoder.decode(stored) == [Stored((NAMES[0],))]
    assert decoder.decode(batch({"type": "BlockRemoved", "group_idx": 0, **event})) == []
    removed = decoder.decode(batch({"type": "BlockRemoved", "group_idx": 1, **event}))
    assert removed == [Removed((NAMES[0],))]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        batch({"type": "BlockStored", "block_hashes": [1 << 60], "medium": "GPU"}),
        batch({"type": "BlockStored", "block_hashes": [b"short"], "medium": "GPU"}),
        batch({"type": "SomethingNew"}),
        batch({"type": "BlockStored"}),
        msgspec.msgpack.encode({"ts": 1}),
    ],
)
def test_what_is_not_understood_is_a_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        EventDecoder().decode(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_a_wire_error(payload: bytes) -> None:
    with contextlib.suppress(WireError):
        EventDecoder().decode(payload)


# --- in order


def body(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_in_order_batches_pass_and_a_gap_holds_back() -> None:
    order = EventOrder()
    assert order.live(0, body(0)) == InOrder((body(0),))
    assert order.live(2, body(2)) == InOrder()
    assert order.missing
    assert order.expected == 1
    assert order.replayed(1, body(1)) == InOrder((body(1), body(2)))
    assert order.replayed(2, body(2)) == InOrder()
    assert order.replay_over() == InOrder()


def test_what_a_replay_does_not_bring_is_lost() -> None:
    order = EventOrder()
    order.live(3, body(3))
    order.live(5, body(5))
    order.live(6, body(6))
    assert order.replay_over() == InOrder((body(5), body(6)), lost=True)
    assert order.live(7, body(7)) == InOrder((body(7),))


def test_numbers_that_begin_anew_mean_a_new_engine() -> None:
    order = EventOrder()
    order.live(0, body(0))
    order.live(1, body(1))
    assert order.live(0, body(9)) == InOrder((body(9),), lost=True)
    assert order.live(1, body(1)) == InOrder((body(1),))


def test_too_many_waiting_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_events, "MAX_WAITING", 3)
    order = EventOrder()
    for number in (1, 2, 3):
        assert order.live(number, body(number)) == InOrder()
    assert order.live(4, body(4)) == InOrder((body(1), body(2), body(3), body(4)), lost=True)


@given(
    count=st.integers(1, 25),
    heard=st.sets(st.integers(0, 24)),
    buffer=st.integers(0, 25),
    cuts=st.sets(st.integers(0, 24)),
)
def test_what_is_applied_since_the_last_loss_has_no_hole(
    count: int, heard: set[int], buffer: int, cuts: set[int]
) -> None:
    """An engine that remembers ``buffer`` batches; live ones are heard or not; replays at cuts."""
    order = EventOrder()
    applied: list[int] = []
    for number in range(count):
        steps = [order.live(number, body(number))] if number in heard else []
        if number in cuts or number == count - 1:
            kept = range(max(order.expected, number + 1 - buffer), number + 1)
            steps += [order.replayed(again, body(again)) for again in kept]
            steps.append(order.replay_over())
        for step in steps:
            if step.lost:
                applied.clear()
            applied.extend(int.from_bytes(one, "big") for one in step.batches)
        if applied:
            assert applied == list(range(applied[0], applied[0] + len(applied)))
    assert not order.missing
    if buffer:
        assert applied[-1] == count - 1


# --- what is held


def test_copies_are_counted_and_only_real_changes_are_told() -> None:
    core = RelayCore(announce())
    assert [d.added for d in stored(core, NAMES[0])] == [NAMES[0]]
    assert stored(core, NAMES[0]) == []
    assert core.apply("gpu", [Removed((NAMES[0],))]) == []
    gone = core.apply("gpu", [Removed((NAMES[0], NAMES[1]))])
    assert [(d.added, d.removed, d.seq) for d in gone] == [(b"", NAMES[0], 2)]
    assert core.apply("gpu", [Stored((NAMES[0],)), Removed((NAMES[0],))]) == []


def test_cleared_is_told_even_if_nothing_follows() -> None:
    core = RelayCore(announce())
    stored(core, NAMES[0])
    (delta,) = core.apply("gpu", [Cleared()])
    assert (delta.cleared, delta.added, delta.removed) == (True, b"", b"")
    (delta,) = core.apply("gpu", [Stored((NAMES[1],)), Cleared(), Stored((NAMES[2],))])
    assert (delta.cleared, delta.added, delta.removed) == (True, NAMES[2], b"")


# --- who is told


def kinds(told: list[Told]) -> list[str]:
    return [type(message).__name__ for message in told]


def test_a_newcomer_gets_who_and_what_and_then_nothing_twice() -> None:
    core = RelayCore(announce())
    stored(core, NAMES[0])
    told = core.subscribe(b"a", wish(), 0.0)
    assert kinds(told) == ["Announce", "Snapshot"]
    assert isinstance(told[1], Snapshot)
    assert (told[1].held, told[1].seq) == (NAMES[0], 1)
    assert core.subscribe(b"a", wish("g0", 1), 1.0) == []
    assert core.subscribers == [b"a"]


def test_one_that_comes_back_gets_exactly_what_it_missed() -> None:
    core = RelayCore(announce())
    core.subscribe(b"a", wish(), 0.0)
    for name in NAMES[:4]:
        stored(core, name)
    core.drop(b"a")
    told = core.subscribe(b"a2", wish("g0", 2), 1.0)
    assert [m.seq for m in told if isinstance(m, Delta)] == [3, 4]
    assert kinds(core.subscribe(b"b", wish("g0", 4, proxy="q"), 1.0)) == ["Announce"]


@pytest.mark.parametrize(("generation", "seq"), [("", 0), ("g9", 4), ("g0", 0), ("g0", 99)])
def test_one_that_cannot_be_continued_gets_a_snapshot(
    monkeypatch: pytest.MonkeyPatch, generation: str, seq: int
) -> None:
    monkeypatch.setattr(relay_core, "_HISTORY", 3)
    core = RelayCore(announce())
    for name in NAMES[:4]:
        stored(core, name)
    assert kinds(core.subscribe(b"a", wish(generation, seq), 0.0)) == ["Announce", "Snapshot"]
    assert kinds(core.subscribe(b"b", wish("g0", 1, proxy="q"), 0.0)) == [
        "Announce",
        *["Delta"] * 3,
    ]


def test_a_snapshot_on_its_way_is_not_sent_again_at_once() -> None:
    core = RelayCore(announce())
    core.subscribe(b"a", wish(), 0.0)
    assert core.subscribe(b"a", wish(), 1.0) == []
    assert kinds(core.subscribe(b"a", wish(), 2.0)) == ["Announce", "Snapshot"]


def test_the_lease_of_a_silent_subscriber_ends() -> None:
    core = RelayCore(announce())
    core.subscribe(b"a", wish(), 0.0)
    core.subscribe(b"b", wish(proxy="q"), 0.0)
    core.subscribe(b"a", wish("g0", 0), 4.0)
    core.expire(5.0)
    assert core.subscribers == [b"a"]


def test_subscribers_are_bounded_and_speak_our_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_core, "MAX_SUBSCRIBERS", 1)
    core = RelayCore(announce())
    assert core.subscribe(b"a", wish(version=PROTOCOL_VERSION + 1), 0.0) == []
    assert core.subscribe(b"a", wish(), 0.0)
    assert core.subscribe(b"b", wish(proxy="q"), 0.0) == []
    assert core.subscribers == [b"a"]


def test_a_restart_is_a_new_generation_with_nothing_held_and_no_past() -> None:
    core = RelayCore(announce())
    stored(core, NAMES[0])
    stored(core, NAMES[1])
    told = core.restart("g1")
    assert kinds(told) == ["Announce", "Snapshot"]
    assert (core.announce.generation, core.announce.seq) == ("g1", 0)
    assert isinstance(told[1], Snapshot)
    assert told[1].held == b""
    stored(core, NAMES[2])
    again = core.subscribe(b"a", wish("g1", 0), 0.0)
    assert [m.added for m in again if isinstance(m, Delta)] == [NAMES[2]]


def test_what_is_in_dram_outlives_the_engine() -> None:
    core = RelayCore(announce())
    stored(core, NAMES[0])
    core.apply("dram", [Stored((NAMES[1], NAMES[2]))])
    _, *parts = core.restart("g1")
    assert [(p.tier, p.held) for p in parts if isinstance(p, Snapshot)] == [
        ("dram", NAMES[1] + NAMES[2])
    ]
    (delta,) = core.apply("dram", [Cleared()])
    assert (delta.generation, delta.seq, delta.tier, delta.cleared) == ("g1", 1, "dram", True)


def test_a_description_leaves_state_generation_and_sequence_alone() -> None:
    core = RelayCore(announce())
    stored(core, NAMES[0])
    core.set_state("ready")
    core.restart("g1")
    stored(core, NAMES[0])
    now = core.describe(msgspec.structs.replace(announce(), capacity_blocks=7))
    assert (now.capacity_blocks, now.state, now.generation, now.seq) == (7, "ready", "g1", 1)


@given(st.lists(st.sampled_from(NAMES), max_size=9, unique=True), st.integers(1, 9))
def test_long_changes_and_snapshots_come_in_parts(names: list[bytes], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_core, "_NAMES_PER_MESSAGE", size)
        core = RelayCore(announce())
        events: list[Event] = [Cleared(), Stored(tuple(names))]
        deltas = core.apply("gpu", events)
        assert b"".join(delta.added for delta in deltas) == b"".join(names)
        assert [delta.cleared for delta in deltas] == [True] + [False] * (len(deltas) - 1)
        parts = [m for m in core.subscribe(b"a", wish(), 0.0) if isinstance(m, Snapshot)]
        assert b"".join(part.held for part in parts) == b"".join(names)
        assert [part.part for part in parts] == list(range(parts[0].parts))
        assert all(len(part.held) <= 16 * size for part in parts)


# --- what proxies tell each other


def engaged(proxy: str, prompts: int = 2, generation: str = "g0") -> Engaged:
    return Engaged("prefill-0", generation, proxy, prompts, 0.5 * prompts)


def two_proxies() -> RelayCore:
    core = RelayCore(announce())
    core.subscribe(b"a", wish(proxy="p"), 0.0)
    core.subscribe(b"b", wish(proxy="q"), 0.0)
    return core


def test_it_is_announced_how_many_proxies_there_are() -> None:
    core = two_proxies()
    assert core.announce.proxies == 2
    core.describe(announce())
    core.restart("g1")
    assert core.announce.proxies == 2
    core.drop(b"b")
    assert core.announce.proxies == 1


def test_what_one_proxy_tells_is_for_the_others_and_for_who_comes_later() -> None:
    core = two_proxies()
    assert core.engage(b"a", engaged("p")) == [b"b"]
    assert core.engaged("q") == core.engaged("r") == [engaged("p")]
    assert core.engaged("p") == []
    core.engage(b"a", engaged("p", prompts=0))
    assert core.engaged("q") == []


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (b"c", engaged("p")),
        (b"a", engaged("q")),
        (b"a", engaged("p", generation="g9")),
        (b"a", msgspec.structs.replace(engaged("p"), worker="prefill-1")),
    ],
)
def test_what_is_not_said_by_whom_it_is_of_or_not_of_this_worker_is_not_passed_on(
    peer: bytes, message: Engaged
) -> None:
    core = two_proxies()
    assert core.engage(peer, message) == []
    assert core.engaged("r") == []


def test_a_proxy_that_has_gone_has_nothing_busy() -> None:
    core = two_proxies()
    core.engage(b"a", engaged("p"))
    core.subscribe(b"b", wish("g0", proxy="q"), 4.0)
    assert core.expire(5.0) == [engaged("p", prompts=0)]
    assert core.engaged("q") == []


def test_one_that_connects_anew_takes_its_own_place() -> None:
    core = two_proxies()
    core.engage(b"a", engaged("p"))
    core.subscribe(b"a2", wish(proxy="p"), 1.0)
    assert core.subscribers == [b"b", b"a2"]
    assert core.engaged("q") == [engaged("p")]
    assert core.drop(b"a") == []


def test_a_new_generation_is_busy_with_nothing() -> None:
    core = two_proxies()
    core.engage(b"a", engaged("p"))
    core.restart("g1")
    assert core.engaged("q") == []


# --- draining


def test_a_worker_drains_while_it_is_ready_until_that_is_taken_back() -> None:
    core = RelayCore(announce())
    wish = Drain("prefill-0", on=True)
    assert core.drain(wish).state == "starting"
    assert core.set_state("ready").state == "draining"
    core.restart("g1")
    assert core.set_state("starting").state == "starting"
    assert core.set_state("ready").state == "draining"
    assert core.drain(Drain("prefill-1", on=False)).state == "draining"
    assert core.drain(Drain("prefill-0", on=False)).state == "ready"
