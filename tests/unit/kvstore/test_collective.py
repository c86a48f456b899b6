"""Lanes that move, over a communicator in memory whose every call can fail."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from kvstore.errors import CommunicatorLost
from kvstore.lane import Limits
from kvstore.messages import Blocks, Broken, Entry, Rendezvous, Shipment, Taken
from kvstore.transport.collective import LINGERING, Bed, LaneReceiver, LaneSender
from kvstore.transport.communicator import Communicator, ControlStore, Pending

A, B = b"a" * 16, b"b" * 16
BLOCK = 8
LIMITS = Limits(window=2, build_seconds=60.0, move_seconds=60.0)


def blocks(transfer: bytes, first: int, count: int = 1) -> Blocks:
    return Blocks(transfer, "gen", 0, first, (b"d" * 16,) * count)


@dataclass
class Cable:
    """Joins the two ends' communicators; ``cut`` fails every wait under way and to come.

    ``swallows``: what is sent never arrives. ``on_arrival`` is called when something has.
    """

    runs: queue.Queue[torch.Tensor] = field(default_factory=queue.Queue)
    cut: threading.Event = field(default_factory=threading.Event)
    swallows: bool = False
    on_arrival: Callable[[], None] = lambda: None

    def send(self, run: torch.Tensor) -> Pending:
        if not self.swallows:
            self.runs.put(run.clone())
        return Done()

    def receive(self, run: torch.Tensor) -> Pending:
        return Incoming(self, run)

    def abort(self) -> None:
        self.cut.set()


class Done:
    def wait(self, until: float) -> None:
        del until


@dataclass
class Incoming:
    cable: Cable
    run: torch.Tensor

    def wait(self, until: float) -> None:
        while not self.cable.cut.is_set():
            try:
                self.run.copy_(self.cable.runs.get(timeout=0.01))
            except queue.Empty:
                assert time.monotonic() < until
            else:
                self.cable.on_arrival()
                return
        raise CommunicatorLost("cut")


class Pair:
    """Both ends in this process, with the control channel and the cables between them."""

    def __init__(self) -> None:
        self.cables: list[Cable] = []
        self.refuse: Callable[[ControlStore, int], None] = lambda _store, _rank: None
        self.linger: Callable[[int], None] = lambda _rank: None
        self.placed: list[tuple[Shipment, bytes]] = []
        self.holds = False
        self.news = threading.Event()
        bed = Bed(self.connect, torch.device("cpu"), BLOCK, 2, LIMITS)
        self.sender = LaneSender(bed, self.news.set)
        self.receiver = LaneReceiver(bed, self.news.set)
        self.failed: dict[str, list[bytes]] = {"sender": [], "receiver": []}
        self.told: list[object] = []
        self.now = 0.0

    def connect(self, store: ControlStore, rank: int) -> Communicator:
        self.refuse(store, rank)
        store.set(f"hello {rank}", b"")
        store.get(f"hello {1 - rank}")
        self.linger(rank)
        while len(self.cables) < self.sender.epoch:
            self.cables.append(Cable())
        return self.cables[self.sender.epoch - 1]

    def place(self) -> None:
        """Whatever has come, unless the owner ``holds`` it all back."""
        while not self.holds and (arrival := self.receiver.receive()):
            self.placed.append((arrival.shipment, bytes(arrival.run.numpy())))
            self.receiver.taken(arrival.shipment, self.now)

    def turn(self) -> None:
        for said in self.sender.turn(self.now):
            self.told.append(said)
            self.receiver.on_message(said, self.now)
        self.place()
        for answer in self.receiver.turn(self.now):
            self.told.append(answer)
            self.sender.on_message(answer, self.now)
        self.failed["sender"] += self.sender.take_failed()
        self.failed["receiver"] += self.receiver.take_failed()

    def until(self, reached: Callable[[], bool]) -> None:
        limit = time.monotonic() + 30.0
        while not reached():
            assert time.monotonic() < limit, "not in time"
            self.turn()
            self.news.wait(0.01)
            self.news.clear()

    def send(self, transfer: bytes, first: int, fill: int, count: int = 1) -> None:
        self.until(lambda: self.sender.slot(self.now) is not None)
        slot = self.sender.slot(self.now)
        assert slot is not None
        slot[: count * BLOCK].fill_(fill)
        self.sender.send(blocks(transfer, first, count), self.now)


def lane_threads(end: str = "") -> list[threading.Thread]:
    return [
        thread for thread in threading.enumerate() if re.search(rf"lane-\d+-{end}", thread.name)
    ]


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.sender.close()
    pair.receiver.close()
    for thread in lane_threads():
        thread.join(10.0)
    assert lane_threads() == []


def test_runs_arrive_whole_and_in_order(pair: Pair) -> None:
    for number in range(7):
        pair.send(A, number, fill=number, count=1 + number % 2)
    pair.until(lambda: len(pair.placed) == 7)
    assert [(shipment.blocks.first, run) for shipment, run in pair.placed] == [
        (number, bytes([number]) * BLOCK * (1 + number % 2)) for number in range(7)
    ]
    assert pair.sender.epoch == 1


def test_a_slot_is_free_again_when_its_shipment_was_taken(pair: Pair) -> None:
    pair.holds = True
    pair.send(A, 0, fill=1)
    pair.send(A, 1, fill=2)
    pair.until(lambda: len(pair.receiver._arrivals) == LIMITS.window)
    assert pair.sender.slot(pair.now) is None
    first, second = pair.receiver.receive(), pair.receiver.receive()
    assert first is not None
    assert second is not None
    pair.receiver.taken(second.shipment, pair.now)
    pair.turn()
    assert pair.sender.slot(pair.now) is None, "they are told of in order"
    assert bytes(first.run.numpy()) == bytes([1]) * BLOCK
    for _ in range(2):
        pair.receiver.taken(first.shipment, pair.now)
    pair.turn()
    assert [Taken(1, 0), Taken(1, 1)] == [said for said in pair.told if isinstance(said, Taken)]
    assert pair.sender.slot(pair.now) is not None


def test_a_communicator_that_cannot_be_built_is_built_anew(pair: Pair) -> None:
    def refuse(_store: ControlStore, rank: int) -> None:
        if rank == 1 and pair.receiver.epoch == 1:
            raise CommunicatorLost("two ranks on one device")

    pair.refuse = refuse
    assert pair.sender.slot(pair.now) is None
    pair.until(lambda: any(isinstance(message, Broken) for message in pair.told))
    assert Broken(1, "CommunicatorLost: two ranks on one device") in pair.told
    pair.now += 1.0
    pair.send(A, 0, fill=1)
    pair.until(lambda: len(pair.placed) == 1)
    assert pair.sender.epoch == 2


def test_nothing_arrives_or_is_told_once_the_epoch_is_over(pair: Pair) -> None:
    pair.holds = True
    pair.send(A, 0, fill=1)
    pair.send(A, 1, fill=2)
    pair.until(lambda: len(pair.receiver._arrivals) == LIMITS.window)
    arrival = pair.receiver.receive()
    assert arrival is not None
    pair.receiver.peer_lost(pair.now)
    assert pair.receiver.receive() is None
    pair.receiver.taken(arrival.shipment, pair.now)
    assert pair.receiver.turn(pair.now) == []


def test_bytes_that_arrive_as_the_epoch_ends_are_not_placed(pair: Pair) -> None:
    pair.until(lambda: pair.sender.slot(pair.now) is not None)
    receiving = pair.receiver._mover
    assert receiving is not None
    pair.cables[0].on_arrival = receiving.abort
    pair.send(A, 0, fill=1)
    pair.until(pair.cables[0].cut.is_set)
    for thread in lane_threads("receive"):
        thread.join(30.0)
    assert pair.placed == []


def test_bytes_that_never_arrive_end_the_epoch_in_time(pair: Pair) -> None:
    pair.until(lambda: pair.sender.slot(pair.now) is not None)
    pair.cables[0].swallows = True
    pair.send(A, 0, fill=1)
    assert pair.sender.next_deadline() == LIMITS.move_seconds
    pair.turn()
    pair.now = LIMITS.move_seconds
    pair.until(lambda: pair.failed == {"sender": [A], "receiver": [A]})
    pair.now += 1.0
    pair.send(B, 0, fill=2)
    pair.until(lambda: len(pair.placed) == 1)


def test_an_epoch_ended_while_it_connects_never_comes_to_stand(pair: Pair) -> None:
    connecting, go_on = threading.Event(), threading.Event()

    def hesitate(rank: int) -> None:
        if rank == 0:
            connecting.set()
            go_on.wait(30.0)

    pair.linger = hesitate
    assert pair.sender.slot(pair.now) is None
    pair.until(connecting.is_set)
    pair.sender.on_message(Broken(1, "gone"), pair.now)
    go_on.set()
    pair.until(lambda: pair.cables != [] and pair.cables[0].cut.is_set())
    pair.turn()
    assert pair.sender.slot(pair.now) is None


def test_epochs_that_do_not_let_go_hold_up_the_next_ones(pair: Pair) -> None:
    let_go = threading.Event()
    entered: list[int] = []

    def hang(_store: ControlStore, rank: int) -> None:
        entered.append(rank)
        let_go.wait(30.0)

    pair.refuse = hang
    for epoch in (1, 2, 3, 4):
        pair.receiver.on_message(Rendezvous(epoch), pair.now)
    assert len(lane_threads()) == LINGERING
    refused = [said for said in pair.receiver.turn(pair.now) if isinstance(said, Broken)]
    assert refused == [Broken(4, "2 earlier epochs have not let go")]
    let_go.set()
    for thread in lane_threads():
        thread.join(30.0)
    pair.receiver.on_message(Rendezvous(5), pair.now)
    pair.until(lambda: entered == [1, 1, 1])


def test_shipments_for_an_epoch_that_was_held_up_have_no_effect(pair: Pair) -> None:
    let_go = threading.Event()

    def hang(_store: ControlStore, _rank: int) -> None:
        let_go.wait(30.0)

    pair.refuse = hang
    for epoch in (1, 2, 3):
        pair.receiver.on_message(Rendezvous(epoch), pair.now)
    pair.receiver.on_message(Shipment(3, 0, blocks(A, 0)), pair.now)
    pair.turn()
    assert pair.failed["receiver"] == [A]
    let_go.set()


def test_entries_of_another_epoch_are_not_told_on(pair: Pair) -> None:
    pair.receiver.on_message(Rendezvous(3), 0.0)
    pair.receiver.on_message(Entry(2, "hello 0", b"old"), 0.0)
    assert not pair.receiver._mover.store.check(["hello 0"])  # type: ignore[union-attr]
    pair.receiver.on_message(Entry(3, "hello 0", b"new"), 0.0)
    assert pair.receiver._mover.store.check(["hello 0"])  # type: ignore[union-attr]
