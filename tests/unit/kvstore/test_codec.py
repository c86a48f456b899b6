"""The one place where bytes become messages: everything of ours passes, nothing else does."""

from __future__ import annotations

import contextlib
from typing import get_args

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from kvstore import codec
from kvstore.codec import MAX_HEADER_BYTES, decode, encode
from kvstore.errors import WireError
from kvstore.messages import (
    CARRIAGES,
    Abandon,
    Announce,
    AnyMessage,
    Begun,
    Blocks,
    Broken,
    Cancel,
    Delta,
    Drain,
    Engaged,
    Enrol,
    Entry,
    Failed,
    FailReason,
    Filed,
    Held,
    Hello,
    Holding,
    LaneKind,
    Outcome,
    Ready,
    Received,
    Rendezvous,
    Role,
    ServedAdapter,
    Shipment,
    Snapshot,
    Standing,
    Subscribe,
    Taken,
    Tenancy,
    Tier,
    Usage,
    Welcome,
    Wiped,
    WorkerState,
)

NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
COUNT = st.integers(0, 1 << 32)
COUNTS = st.lists(COUNT, min_size=1, max_size=9).map(tuple)
ADDRESS = st.integers(0, 1 << 56)
DIGEST16 = st.binary(min_size=16, max_size=16)
DIGEST32 = st.binary(min_size=32, max_size=32)
HASHES = st.binary(max_size=160)
REASON = st.sampled_from(get_args(FailReason))
TIER = st.sampled_from(get_args(Tier))

BLOCKS = st.builds(
    Blocks,
    DIGEST16,
    NAME,
    COUNT,
    COUNT,
    st.lists(DIGEST16, min_size=1, max_size=9).map(tuple),
    COUNTS | st.just(()),
)

TAG = st.text("0123456789abcdef", min_size=16, max_size=16)
EPOCH = st.integers(0, (1 << 32) - 1)
SIZE = st.integers(0, 1 << 53)
SHARE = st.floats(0, 1)
ADAPTER = st.builds(ServedAdapter, NAME, TAG, TEXT)
STANDING = st.builds(Standing, TAG, EPOCH, SHARE, SHARE)
HOLDING = st.builds(Holding, TAG, SIZE, SIZE)

MESSAGES: dict[type[AnyMessage], SearchStrategy[AnyMessage]] = {
    Hello: st.builds(Hello, COUNT),
    Welcome: st.builds(
        Welcome,
        version=COUNT,
        bulk=TEXT,
        token=st.text("0123456789abcdef", max_size=64),
        lane=st.none() | st.sampled_from(get_args(LaneKind)),
        device=TEXT,
        pid=COUNT,
        base=ADDRESS,
        layer_step=ADDRESS,
        block_step=ADDRESS,
        layers=COUNT,
        blocks=COUNT,
        page_bytes=COUNT,
        probe=DIGEST16,
        probe_at=ADDRESS,
    ),
    Ready: st.builds(
        Ready,
        version=COUNT,
        transfer=DIGEST16,
        sender_generation=NAME,
        receiver=NAME,
        receiver_generation=NAME,
        fingerprint=DIGEST32,
        layout=TEXT,
        first=COUNTS,
        stop=COUNT,
        blocks=COUNT,
        carriage=st.sampled_from(CARRIAGES),
        route=st.binary(max_size=16),
        ttl_ms=COUNT,
        mac=DIGEST32,
    ),
    Blocks: BLOCKS,
    Rendezvous: st.builds(Rendezvous, COUNT),
    Entry: st.builds(Entry, COUNT, TEXT, st.binary(max_size=160)),
    Shipment: st.builds(Shipment, COUNT, COUNT, BLOCKS),
    Taken: st.builds(Taken, COUNT, COUNT),
    Broken: st.builds(Broken, COUNT, TEXT),
    Received: st.builds(Received, DIGEST16, COUNT, COUNT),
    Failed: st.builds(Failed, DIGEST16, REASON, TEXT),
    Cancel: st.builds(Cancel, DIGEST16),
    Subscribe: st.builds(Subscribe, COUNT, NAME, TEXT, COUNT),
    Announce: st.builds(
        Announce,
        version=COUNT,
        worker=NAME,
        role=st.sampled_from(get_args(Role)),
        generation=NAME,
        state=st.sampled_from(get_args(WorkerState)),
        model=NAME,
        http=TEXT,
        ship=TEXT,
        fingerprint=st.text("0123456789abcdef", max_size=64),
        block_size=COUNT,
        max_model_len=COUNT,
        capacity_blocks=COUNT,
        seq=COUNT,
        proxies=COUNT,
        adapters=st.lists(ADAPTER, max_size=3).map(tuple),
    ),
    Tenancy: st.builds(Tenancy, TEXT, st.lists(STANDING, max_size=5).map(tuple)),
    Usage: st.builds(
        Usage, NAME, TIER, SIZE, COUNT, COUNT, st.lists(HOLDING, max_size=5).map(tuple)
    ),
    Wiped: st.builds(Wiped, NAME, TIER, TAG, EPOCH, SIZE, st.floats(0, 86_400)),
    Engaged: st.builds(Engaged, NAME, NAME, NAME, COUNT, st.floats(0, 86_400)),
    Drain: st.builds(Drain, NAME, st.booleans()),
    Enrol: st.builds(Enrol, NAME, NAME),
    Filed: st.builds(Filed, NAME, COUNT, NAME, COUNT, COUNT, COUNT, HASHES),
    Snapshot: st.builds(Snapshot, NAME, NAME, COUNT, COUNT, COUNT, TIER, HASHES),
    Delta: st.builds(Delta, NAME, NAME, COUNT, TIER, st.booleans(), HASHES, HASHES),
    Outcome: st.builds(
        Outcome,
        DIGEST16,
        st.booleans(),
        COUNT,
        COUNT,
        COUNT,
        st.floats(0, 86_400_000),
        st.none() | REASON,
    ),
    Begun: st.builds(Begun, DIGEST16, st.floats(0, 1e9), st.floats(0, 1e9)),
    Held: st.builds(Held, DIGEST16, COUNT, st.floats(0, 1e9)),
    Abandon: st.builds(Abandon, DIGEST16),
}
ANY_MESSAGE = st.one_of(list(MESSAGES.values()))
CANCEL = {"type": "Cancel", "transfer": bytes(16)}


def test_every_message_is_tried_here() -> None:
    assert set(MESSAGES) == set(get_args(AnyMessage))


@given(ANY_MESSAGE)
def test_what_is_encoded_comes_back(message: AnyMessage) -> None:
    frame = encode(message)
    assert decode(frame) == message
    assert decode(memoryview(frame)) == message


@given(ANY_MESSAGE, st.data())
def test_a_cut_frame_is_refused(message: AnyMessage, data: st.DataObject) -> None:
    frame = encode(message)
    with pytest.raises(WireError):
        decode(frame[: data.draw(st.integers(0, len(frame) - 1))])
    with pytest.raises(WireError):
        decode(frame + b"\x00")


@settings(max_examples=300)
@given(ANY_MESSAGE, st.data())
def test_a_damaged_frame_is_a_message_or_a_wire_error(
    message: AnyMessage, data: st.DataObject
) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert isinstance(decode(bytes(frame)), get_args(AnyMessage))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_wire_error(frame: bytes) -> None:
    with contextlib.suppress(WireError):
        assert isinstance(decode(frame), get_args(AnyMessage))


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {"type": "Cancel"},
        {"transfer": bytes(16)},
        CANCEL | {"type": "Unknown"},
        CANCEL | {"type": "Message"},
        CANCEL | {"extra": 1},
        CANCEL | {"transfer": bytes(15)},
        CANCEL | {"transfer": "x" * 16},
        CANCEL | {"transfer": 0},
        CANCEL | {"transfer": msgpack.ExtType(1, bytes(16))},
        CANCEL | {"transfer": msgpack.Timestamp(0)},
        {"type": "Received", "transfer": bytes(16), "through": -1},
        {"type": "Received", "transfer": bytes(16), "through": True},
        {"type": "Received", "transfer": bytes(16), "through": 1.0},
        {"type": "Received", "transfer": bytes(16), "through": (1 << 32) + 1},
        {"type": "Failed", "transfer": bytes(16), "reason": "because", "detail": ""},
        {"type": "Failed", "transfer": bytes(16), "reason": "deadline", "detail": "x" * 1025},
        {"type": "Blocks", "transfer": bytes(16), "sender_generation": "g", "first": 0}
        | {"digests": []},
        {"type": "Blocks", "transfer": bytes(16), "sender_generation": "g", "first": 0}
        | {"digests": [bytes(16)] * 4097},
        {"type": "Shipment", "epoch": 1, "sequence": 0, "blocks": CANCEL},
        {"type": "Entry", "epoch": 1, "key": "k", "value": bytes((64 << 10) + 1)},
        {"type": "Subscribe", "version": 1, "proxy": "", "generation": "", "seq": 0},
        {"type": "Begun", "transfer": bytes(16), "arrived": -1.0, "begun": 1.0},
        {
            "type": "Engaged",
            "worker": "w",
            "generation": "g",
            "proxy": "p",
            "prompts": 1,
            "seconds": -1.0,
        },
    ],
)
def test_everything_else_is_refused(plain: object) -> None:
    with pytest.raises(WireError) as caught:
        decode(msgpack.packb(plain))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xdf\xff\xff\xff\xff",  # a map of four billion
        b"\xc6\xff\xff\xff\xff",  # four gigabytes
        b"\xdb\xff\xff\xff\xff",  # of text
        b"\x91" * 5000,  # very deep
        b"\x81\xa4type\xa6Cancel" * 2,
        b"\x81\x01\x02",  # a key that is no text
        b"\x81\xa1\xff\x01",  # not UTF-8
        bytes(MAX_HEADER_BYTES + 1),
    ],
)
def test_hostile_frames_cost_nothing(frame: bytes) -> None:
    with pytest.raises(WireError):
        decode(frame)


def test_the_longest_feed_messages_fit() -> None:
    most = bytes(1 << 20)
    part = Snapshot("w", "g", 0, 0, 1, "gpu", most)
    assert decode(encode(part)) == part
    digests = Blocks(bytes(16), "g", 0, 0, (bytes(16),) * 4096, (1 << 32,) * 4096)
    assert decode(encode(digests)) == digests
    assert codec.MAX_HEADER_BYTES < 4 << 20, "below what a socket accepts as one frame"
