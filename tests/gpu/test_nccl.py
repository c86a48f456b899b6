"""A lane between two processes over NCCL, on one card that passes for two hosts' cards."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from kvstore.device_pages import LayerPages
from kvstore.lane import Limits
from tests.support.lane_peer import Peer, Placed, over_nccl, pages

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
LIMITS = Limits(window=3, build_seconds=60.0, move_seconds=5.0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer(over_nccl, LIMITS)
    try:
        peer.until(
            lambda: bool(peer.reasons) or peer.end.slot(time.monotonic()) is not None,
            "a communicator",
            seconds=120.0,
        )
        if peer.reasons:
            pytest.skip(f"NCCL does not connect two processes on one card: {peer.reasons[0]}")
        yield peer
    finally:
        peer.close()


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other.cpu()) for one, other in zip(left, right, strict=True))


def test_shipments_arrive_in_the_senders_order_and_bit_for_bit(peer: Peer) -> None:
    source = pages(seed=7, device="cuda")
    order = [(A, 0, 4), (B, 4, 3), (A, 7, 4), (C, 11, 1), (B, 12, 4), (C, 16, 4), (A, 20, 4)]
    for shipment in order:
        peer.send(LayerPages(source), *shipment)
    peer.until(lambda: len(peer.placed) == len(order), "all shipments placed")
    assert peer.placed == [Placed(*shipment) for shipment in order]
    assert same(peer.pages_there(), source)


def test_a_stalled_peer_ends_the_epoch_and_the_next_one_works(peer: Peer) -> None:
    source = pages(seed=7, device="cuda")
    peer.send(LayerPages(source), A, 0, 4)
    peer.until(lambda: len(peer.placed) == 1, "the first shipment")
    peer.stall()
    peer.send(LayerPages(source), B, 4, 4)
    peer.until(lambda: peer.failed_here == [B], "the stall noticed")
    peer.go_on()
    peer.send(LayerPages(source), C, 8, 4)
    peer.until(
        lambda: Placed(C, 8, 4) in peer.placed, "a shipment of the next epoch", seconds=120.0
    )
    assert same([t[8:12] for t in peer.pages_there()], [t[8:12] for t in source])


def test_a_dead_peer_ends_the_epoch(peer: Peer) -> None:
    source = LayerPages(pages(seed=7, device="cuda"))
    peer.send(source, A, 0, 4)
    peer.until(lambda: len(peer.placed) == 1, "the first shipment")
    peer.cut_off = True
    peer.kill()
    peer.send(source, B, 4, 4)
    peer.until(lambda: peer.failed_here == [B], "the death noticed")
