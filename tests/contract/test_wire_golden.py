"""The bytes of every message, written down: a change of the wire cannot go unseen.

A difference here means a new protocol version, with its history in ``kvstore.messages``, and a new
file in ``golden/``: one line per message, its name and its bytes in hex.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from kvstore.codec import decode, encode
from kvstore.messages import (
    PROTOCOL_VERSION,
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
    Filed,
    Held,
    Hello,
    Holding,
    Outcome,
    Ready,
    Received,
    Rendezvous,
    ServedAdapter,
    Shipment,
    Snapshot,
    Standing,
    Subscribe,
    Taken,
    Tenancy,
    Usage,
    Welcome,
    Wiped,
)

GOLDEN = Path(__file__).parent / "golden" / f"protocol-{PROTOCOL_VERSION}.hex"
TRANSFER = bytes(range(16))

SAMPLES: list[AnyMessage] = [
    Hello(version=1),
    Welcome(
        version=1,
        bulk="tcp://10.0.0.1:7103",
        token="c0ffee",
        lane="nccl",
        device="GPU-6f12",
        pid=4711,
        base=0x7F00_0000_0000,
        layer_step=1 << 30,
        block_step=1 << 14,
        layers=30,
        blocks=1000,
        page_bytes=24_576,
        probe=bytes(range(16)),
        probe_at=0x7F00_0000_1000,
    ),
    Ready(
        version=1,
        transfer=TRANSFER,
        sender_generation="p1",
        receiver="decode-0",
        receiver_generation="d1",
        fingerprint=bytes(range(32)),
        layout="bf16",
        first=(3, 280),
        stop=299,
        blocks=300,
        carriage="bulk",
        route=bytes(range(16)),
        ttl_ms=30_000,
        mac=bytes(range(32, 64)),
    ),
    Blocks(TRANSFER, "p1", 1, 70_000, (bytes(16), bytes(range(16))), (3, 9)),
    Rendezvous(7),
    Entry(7, "rank 0", b"10.0.0.1"),
    Shipment(7, 70_000, Blocks(TRANSFER, "p1", 1, 5, (bytes(16),))),
    Taken(7, 70_000),
    Broken(7, "nothing moved in time"),
    Received(TRANSFER, 1, 5),
    Failed(TRANSFER, "prefill-failed", "out of memory"),
    Cancel(TRANSFER),
    Subscribe(version=1, proxy="proxy-0", generation="", seq=0),
    Engaged(worker="prefill-0", generation="p1", proxy="proxy-0", prompts=2, seconds=1.25),
    Drain(worker="prefill-0", on=True),
    Announce(
        version=1,
        worker="prefill-0",
        role="prefill",
        generation="p1",
        state="ready",
        model="m",
        http="unix:/run/p.http",
        ship="zmq+ipc:///run/p.ship",
        fingerprint="ab",
        block_size=32,
        max_model_len=8192,
        capacity_blocks=1000,
        seq=1 << 32,
        proxies=2,
        adapters=(ServedAdapter("support-bot", "0123456789abcdef", "/models/support-bot"),),
    ),
    Tenancy("prefill-0", (Standing("0123456789abcdef", 3, 0.25, 0.5),)),
    Usage("prefill-0", "gpu", 1 << 30, 0, 1, (Holding("0123456789abcdef", 1 << 20, 4096),)),
    Wiped("prefill-0", "dram", "0123456789abcdef", 3, 1 << 30, 0.5),
    Snapshot("prefill-0", "p1", 7, 0, 2, "dram", bytes(range(32))),
    Delta("prefill-0", "p1", 8, "gpu", True, bytes(range(16)), b""),
    Enrol("prefill-0", "kvferry-ab/2"),
    Filed("kvferry-ab/2", 4, "5f-7", 1, 256, 512, bytes(range(32))),
    Outcome(TRANSFER, True, 32, 2481, 57_000_000, 12.5),
    Begun(TRANSFER, 70_000.25, 70_000.5),
    Held(TRANSFER, 2496, 70_000.25),
    Abandon(TRANSFER),
]


def golden() -> dict[str, bytes]:
    lines = (line.split() for line in GOLDEN.read_text(encoding="ascii").splitlines())
    return {name: bytes.fromhex(written) for name, written in lines}


def test_every_message_is_written_down() -> None:
    names = {kind.__name__ for kind in get_args(AnyMessage)}
    assert {type(sample).__name__ for sample in SAMPLES} == names
    assert set(golden()) == names


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_bytes_are_as_written_down(sample: AnyMessage) -> None:
    written = golden()[type(sample).__name__]
    assert encode(sample) == written
    assert decode(written) == sample
