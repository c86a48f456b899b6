"""A lane between two real processes over gloo: order, losses, and epochs that begin again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from kvstore.device_pages import LayerPages
from kvstore.lane import Limits
from kvstore.messages import Broken
from tests.support.lane_peer import BLOCKS, SLOT_BLOCKS, Peer, Placed, over_gloo, pages

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    seconds = getattr(request, "param", 30.0)
    limits = Limits(window=3, build_seconds=30.0, move_seconds=seconds)
    before = set(threading.enumerate())
    peer = Peer(over_gloo, limits)
    yield peer
    peer.close()
    lanes = [thread for thread in set(threading.enumerate()) - before if "lane" in thread.name]
    for thread in lanes:
        thread.join(seconds + 5.0)
    assert not any(thread.is_alive() for thread in lanes)


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_shipments_arrive_in_the_senders_order_and_bit_for_bit(peer: Peer) -> None:
    source = pages(seed=7)
    order = [(A, 0, 4), (B, 4, 3), (A, 7, 4), (C, 11, 1), (B, 12, 4), (C, 16, 4), (A, 20, 4)]
    for transfer, first, count in order:
        peer.send(LayerPages(source), transfer, first, count)
    peer.until(lambda: len(peer.placed) == len(order), "all shipments placed")
    assert peer.placed == [Placed(*shipment) for shipment in order]
    assert same(peer.pages_there(), source)
    assert peer.end.epoch == 1
    assert peer.failed_here == peer.failed_there == []


def test_shipments_beyond_the_ring_wait_for_the_receiver(peer: Peer) -> None:
    source = LayerPages(pages(seed=7))
    peer.slot()
    for first in range(3):
        peer.send(source, A, first, 1)
    assert peer.end.slot(0.0) is None
    for first in range(3, BLOCKS):
        peer.send(source, A, first, 1)
    peer.until(lambda: len(peer.placed) == BLOCKS, "all shipments placed")
    assert [placed.first for placed in peer.placed] == list(range(BLOCKS))


@pytest.mark.parametrize("peer", [2.0], indirect=True)
def test_a_stalled_peer_ends_the_epoch_and_the_next_one_works(peer: Peer) -> None:
    source = pages(seed=7)
    peer.send(LayerPages(source), A, 0, 4)
    peer.until(lambda: len(peer.placed) == 1, "the first shipment")
    peer.stall()
    peer.send(LayerPages(source), B, 4, 4)
    peer.until(lambda: peer.failed_here == [B], "the stall noticed")
    peer.go_on()
    peer.send(LayerPages(source), C, 8, 4)
    peer.until(lambda: Placed(C, 8, 4) in peer.placed, "a shipment of the next epoch")
    assert peer.end.epoch >= 2
    assert A not in peer.failed_here + peer.failed_there
    there = peer.pages_there()
    assert same([layer[8:12] for layer in there], [layer[8:12] for layer in source])


@pytest.mark.parametrize("peer", [2.0], indirect=True)
def test_a_dead_peer_ends_the_epoch_even_if_nobody_says_so(peer: Peer) -> None:
    source = LayerPages(pages(seed=7))
    peer.send(source, A, 0, 4)
    peer.until(lambda: len(peer.placed) == 1, "the first shipment")
    peer.cut_off = True
    peer.kill()
    peer.send(source, B, 4, 4)
    peer.until(lambda: peer.failed_here == [B], "the death noticed")


def test_a_broken_control_channel_ends_the_epoch_at_once(peer: Peer) -> None:
    source = LayerPages(pages(seed=7))
    peer.slot()
    peer.cut_off = True
    peer.send(source, B, 4, 4)
    peer.end.peer_lost(0.0)
    assert peer.end.take_failed() == [B]
    assert peer.end.slot(0.0) is None


def test_an_epoch_the_receiver_ends_is_followed_by_one_that_works(peer: Peer) -> None:
    source = pages(seed=7)
    peer.send(LayerPages(source), A, 0, SLOT_BLOCKS)
    peer.until(lambda: len(peer.placed) == 1, "the first shipment")
    peer.end.on_message(Broken(1, "as if it had said so"), 0.0)
    peer.send(LayerPages(source), B, 4, SLOT_BLOCKS)
    peer.until(lambda: len(peer.placed) == 2, "a shipment of the next epoch")
    assert peer.end.epoch == 2
    assert same([t[:8] for t in peer.pages_there()], [t[:8] for t in source])


@pytest.mark.parametrize("peer", [2.0], indirect=True)
def test_a_shipment_whose_bytes_do_not_follow_fails_at_both_ends(peer: Peer) -> None:
    source = LayerPages(pages(seed=7))
    peer.send(source, A, 0, 1)
    peer.until(lambda: len(peer.placed) == 1, "the first shipment")
    mover = peer.end._mover
    assert mover is not None
    mover.submit = lambda shipment: None  # type: ignore[method-assign]
    peer.send(source, B, 1, 1)
    peer.until(lambda: peer.failed_there == [B], "the receiver's end of waiting")
    peer.until(lambda: peer.failed_here == [B], "the sender told of it")
    peer.send(source, C, 2, 1)
    peer.until(lambda: Placed(C, 2, 1) in peer.placed, "a shipment of the next epoch")
