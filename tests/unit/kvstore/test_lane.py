"""Lanes: one order for both ends, and epochs that end and begin again whatever happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kvstore.lane import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Abort,
    Build,
    Limits,
    Move,
    ReceiverLane,
    SenderLane,
)
from kvstore.messages import Blocks, Broken, Rendezvous, Shipment, Taken

LIMITS = Limits(window=3, build_seconds=20.0, move_seconds=10.0)
MOST = 8
A, B = b"a" * 16, b"b" * 16


def blocks(transfer: bytes, first: int, count: int) -> Blocks:
    return Blocks(transfer, "gen", 3, first, (b"d" * 16,) * count)


def shipment(epoch: int, sequence: int, transfer: bytes, first: int, count: int) -> Shipment:
    return Shipment(epoch, sequence, blocks(transfer, first, count))


def ship(lane: SenderLane, transfer: bytes, first: int, count: int, now: float) -> None:
    lane.ship(blocks(transfer, first, count), now)


def open_sender(now: float = 0.0) -> SenderLane:
    lane = SenderLane(LIMITS)
    lane.want(now)
    lane.built(1, now)
    lane.take_commands()
    lane.take_outgoing()
    return lane


def open_receiver(now: float = 0.0) -> ReceiverLane:
    lane = ReceiverLane(LIMITS, MOST)
    lane.on_rendezvous(Rendezvous(1), now)
    lane.built(1, now)
    lane.take_commands()
    return lane


def state(lane: SenderLane | ReceiverLane) -> str:
    return lane.state


# -- the sender


def test_wanting_begins_one_epoch_and_tells_the_other_end() -> None:
    lane = SenderLane(LIMITS)
    lane.want(0.0)
    lane.want(0.0)
    assert lane.take_commands() == [Build(1)]
    assert lane.take_outgoing() == [Rendezvous(1)]
    assert lane.slot() is None
    lane.built(1, 1.0)
    assert lane.slot() == 0
    assert lane.next_deadline() is None


def test_shipments_are_numbered_and_announced_up_to_the_window() -> None:
    lane = open_sender()
    for first in range(3):
        assert lane.slot() == first
        ship(lane, A, first, 1, 0.0)
    shipments = [shipment(1, number, A, number, 1) for number in range(3)]
    assert lane.take_outgoing() == shipments
    assert lane.take_commands() == [Move(shipment) for shipment in shipments]
    assert lane.slot() is None
    with pytest.raises(ValueError, match="no shipment"):
        ship(lane, A, 3, 1, 0.0)
    lane.on_taken(Taken(1, 0), 0.0)
    assert lane.slot() == 0
    ship(lane, B, 0, 2, 0.0)
    assert lane.take_outgoing() == [shipment(1, 3, B, 0, 2)]


def test_an_epoch_without_progress_ends_and_fails_what_was_on_the_way() -> None:
    lane = open_sender()
    for transfer in (A, B, A):
        ship(lane, transfer, 0, 1, 0.0)
    lane.take_commands()
    lane.on_taken(Taken(1, 0), 5.0)
    assert lane.next_deadline() == 15.0
    lane.expire(14.9)
    assert lane.take_commands() == []
    lane.expire(15.0)
    assert lane.take_commands() == [Abort(1)]
    assert lane.take_failed() == [B, A]
    assert lane.take_outgoing()[-1] == Broken(1, "nothing moved in time")
    assert lane.next_deadline() is None


def test_a_transfer_whose_shipments_were_all_taken_outlives_the_epoch() -> None:
    lane = open_sender()
    ship(lane, A, 0, 1, 0.0)
    ship(lane, B, 0, 1, 0.0)
    lane.on_taken(Taken(1, 0), 0.0)
    lane.lost(1, "gone", 0.0)
    assert lane.take_failed() == [B]


def test_a_communicator_that_does_not_come_to_stand_is_given_up() -> None:
    lane = SenderLane(LIMITS)
    lane.want(0.0)
    assert lane.next_deadline() == 20.0
    lane.expire(20.0)
    assert lane.take_commands() == [Build(1), Abort(1)]
    assert lane.take_outgoing() == [Rendezvous(1), Broken(1, "nothing came to stand in time")]
    lane.built(1, 20.1)
    assert lane.slot() is None


def test_pauses_between_epochs_double_until_a_shipment_is_taken() -> None:
    lane = SenderLane(LIMITS)
    now, pauses = 0.0, []
    for _ in range(9):
        lane.want(now)
        lane.lost(lane.epoch, "refused", now)
        began, epoch = now, lane.epoch
        while lane.epoch == epoch:
            now += FIRST_PAUSE
            lane.want(now)
        pauses.append(now - began)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE, LONGEST_PAUSE]
    lane.built(lane.epoch, now)
    ship(lane, A, 0, 1, now)
    lane.on_taken(Taken(lane.epoch, 0), now)
    lane.lost(lane.epoch, "gone", now)
    lane.want(now + FIRST_PAUSE)
    assert state(lane) == "building"


def test_a_shipment_taken_out_of_order_ends_the_epoch() -> None:
    lane = open_sender()
    ship(lane, A, 0, 1, 0.0)
    ship(lane, A, 1, 1, 0.0)
    lane.on_taken(Taken(1, 1), 0.0)
    assert lane.take_failed() == [A]


def test_what_an_earlier_epoch_still_tells_a_sender_has_no_effect() -> None:
    lane = open_sender()
    ship(lane, A, 0, 1, 0.0)
    lane.lost(1, "gone", 0.0)
    lane.want(FIRST_PAUSE)
    lane.built(1, FIRST_PAUSE)
    assert state(lane) == "building"
    lane.built(2, FIRST_PAUSE)
    ship(lane, B, 0, 1, FIRST_PAUSE)
    lane.on_taken(Taken(1, 0), FIRST_PAUSE)
    lane.lost(1, "gone again", FIRST_PAUSE)
    lane.on_broken(Broken(1, "gone"), FIRST_PAUSE)
    assert state(lane) == "open"
    assert lane.take_failed() == [A]
    assert lane.next_deadline() == FIRST_PAUSE + LIMITS.move_seconds


# -- the receiver


def test_what_an_earlier_epoch_still_tells_a_receiver_has_no_effect() -> None:
    lane = open_receiver()
    lane.on_rendezvous(Rendezvous(2), 0.0)
    lane.built(1, 0.0)
    assert state(lane) == "building"
    lane.built(2, 0.0)
    lane.on_shipment(shipment(2, 0, A, 0, 1), 0.0)
    lane.taken(1, 0, 0.0)
    lane.lost(1, "gone", 0.0)
    assert state(lane) == "open"
    assert lane.take_outgoing() == []


def test_a_receiver_waits_for_announced_bytes_as_long_as_they_keep_coming() -> None:
    lane = open_receiver()
    assert lane.next_deadline() is None
    lane.on_shipment(shipment(1, 0, A, 0, 1), 1.0)
    lane.on_shipment(shipment(1, 1, A, 1, 1), 5.0)
    assert lane.next_deadline() == 11.0
    lane.taken(1, 0, 6.0)
    assert lane.next_deadline() == 16.0
    lane.expire(16.0)
    assert lane.take_outgoing() == [Taken(1, 0), Broken(1, "nothing moved in time")]
    assert lane.take_failed() == [A]


def test_a_receiver_follows_into_a_new_epoch_and_ends_the_old_one() -> None:
    lane = open_receiver()
    lane.on_shipment(shipment(1, 0, A, 0, 1), 0.0)
    lane.take_commands()
    lane.on_rendezvous(Rendezvous(2), 0.0)
    assert lane.take_commands() == [Abort(1), Build(2)]
    assert lane.take_failed() == [A]
    assert lane.take_outgoing() == []
    lane.taken(1, 0, 0.0)
    assert lane.take_outgoing() == []
    lane.on_rendezvous(Rendezvous(2), 0.0)
    lane.on_rendezvous(Rendezvous(1), 0.0)
    assert lane.take_commands() == []


def test_shipments_announced_while_it_builds_are_received_afterwards() -> None:
    lane = ReceiverLane(LIMITS, MOST)
    lane.on_rendezvous(Rendezvous(1), 0.0)
    early = shipment(1, 0, A, 0, 1)
    lane.on_shipment(early, 1.0)
    assert lane.take_commands() == [Build(1), Move(early)]
    assert lane.next_deadline() == 20.0
    lane.built(1, 2.0)
    assert lane.next_deadline() == 12.0
    lane.taken(1, 0, 3.0)
    assert lane.take_outgoing() == [Taken(1, 0)]
    assert lane.next_deadline() is None


@pytest.mark.parametrize(
    "shipment",
    [
        shipment(1, 1, A, 0, 1),
        shipment(1, 0, A, 0, MOST + 1),
    ],
)
def test_a_shipment_that_cannot_be_ends_the_epoch(shipment: Shipment) -> None:
    lane = open_receiver()
    lane.on_shipment(shipment, 0.0)
    assert lane.take_commands() == [Abort(1)]
    assert isinstance(lane.take_outgoing()[0], Broken)


def test_a_sender_that_ignores_the_window_ends_the_epoch() -> None:
    lane = open_receiver()
    for number in range(4):
        lane.on_shipment(shipment(1, number, A, number, 1), 0.0)
    assert [type(command) for command in lane.take_commands()] == [Move, Move, Move, Abort]
    assert lane.take_failed() == [A]


def test_shipments_of_another_epoch_have_no_effect() -> None:
    lane = open_receiver()
    lane.on_shipment(shipment(2, 0, A, 0, 1), 0.0)
    lane.on_shipment(shipment(0, 0, A, 0, 1), 0.0)
    lane.on_broken(Broken(2, ""), 0.0)
    assert lane.take_commands() == []
    lane.lost(1, "gone", 0.0)
    lane.on_shipment(shipment(1, 0, A, 0, 1), 0.0)
    assert lane.take_commands() == [Abort(1)]


def test_a_broken_control_channel_ends_the_epoch_without_a_word() -> None:
    lane = open_receiver()
    lane.on_shipment(shipment(1, 0, A, 0, 1), 0.0)
    lane.peer_lost(0.0)
    assert lane.take_failed() == [A]
    assert lane.take_outgoing() == []


# -- both, in any order


@dataclass
class Communicators:
    """What one end's communicator was told to do, by epoch."""

    built: list[int] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    moves: dict[int, list[Shipment]] = field(default_factory=dict)

    def obey(self, lane: SenderLane | ReceiverLane) -> None:
        for command in lane.take_commands():
            match command:
                case Build(epoch):
                    assert epoch > max(self.built, default=0)
                    assert self.built == self.aborted, "the one before must be over"
                    self.built.append(epoch)
                    self.moves[epoch] = []
                case Move(shipment):
                    assert shipment.epoch == self.built[-1]
                    assert shipment.epoch not in self.aborted
                    self.moves[shipment.epoch].append(shipment)
                case Abort(epoch):
                    assert epoch == self.built[-1]
                    self.aborted.append(epoch)


class AnyOrder(RuleBasedStateMachine):
    """Two lanes, a control channel in order, and communicators that succeed or fail at will."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.sender, self.receiver = SenderLane(LIMITS), ReceiverLane(LIMITS, MOST)
        self.sending, self.receiving = Communicators(), Communicators()
        self.to_receiver: deque[Rendezvous | Shipment | Broken] = deque()
        self.to_sender: deque[Taken | Broken] = deque()
        self.on_way: dict[tuple[int, int], Shipment] = {}
        self.received: dict[int, int] = {}

    def settle(self) -> None:
        """Do what both lanes ask for."""
        before = set(self.sending.aborted)
        self.sending.obey(self.sender)
        self.receiving.obey(self.receiver)
        self.to_receiver.extend(self.sender.take_outgoing())
        self.to_sender.extend(self.receiver.take_outgoing())
        lost = {
            shipment.blocks.transfer
            for shipment in self.on_way.values()
            if shipment.epoch in set(self.sending.aborted) - before
        }
        failed = self.sender.take_failed()
        assert len(failed) == len(set(failed))
        assert set(failed) == lost
        over = set(self.sending.aborted)
        self.on_way = {
            at: shipment for at, shipment in self.on_way.items() if shipment.epoch not in over
        }
        self.receiver.take_failed()

    def act(self, step: Callable[[], None]) -> None:
        step()
        self.settle()

    @rule()
    def want(self) -> None:
        self.act(lambda: self.sender.want(self.now))

    @precondition(lambda self: self.sender.slot() is not None)
    @rule(transfer=st.sampled_from([A, B]), first=st.integers(0, 9), count=st.integers(1, MOST))
    def send(self, transfer: bytes, first: int, count: int) -> None:
        slot = self.sender.slot()
        assert slot not in {shipment.sequence % LIMITS.window for shipment in self.on_way.values()}
        ship(self.sender, transfer, first, count, self.now)
        epoch = self.sender.epoch
        sequence = len(self.sending.moves[epoch])
        assert slot == sequence % LIMITS.window
        self.on_way[epoch, sequence] = shipment(epoch, sequence, transfer, first, count)
        self.settle()

    @precondition(lambda self: self.to_receiver)
    @rule()
    def tell_receiver(self) -> None:
        message = self.to_receiver.popleft()
        match message:
            case Rendezvous():
                self.act(lambda: self.receiver.on_rendezvous(message, self.now))
            case Shipment():
                self.act(lambda: self.receiver.on_shipment(message, self.now))
            case Broken():
                self.act(lambda: self.receiver.on_broken(message, self.now))

    @precondition(lambda self: self.to_sender)
    @rule()
    def tell_sender(self) -> None:
        message = self.to_sender.popleft()
        match message:
            case Taken():
                if (
                    message.epoch == self.sender.epoch
                    and self.sender.epoch not in self.sending.aborted
                ):
                    del self.on_way[message.epoch, message.sequence]
                self.act(lambda: self.sender.on_taken(message, self.now))
            case Broken():
                self.act(lambda: self.sender.on_broken(message, self.now))

    @rule(back=st.integers(0, 2), sender=st.booleans())
    def built(self, back: int, sender: bool) -> None:
        lane = self.sender if sender else self.receiver
        self.act(lambda: lane.built(lane.epoch - back, self.now))

    @rule(back=st.integers(0, 3), sender=st.booleans())
    def lost(self, back: int, sender: bool) -> None:
        lane = self.sender if sender else self.receiver
        self.act(lambda: lane.lost(lane.epoch - back, "gone", self.now))

    @rule()
    def bytes_arrive(self) -> None:
        """The oldest shipment that both ends move, if there is one."""
        epoch = self.receiver.epoch
        done = self.received.get(epoch, 0)
        moves = self.receiving.moves.get(epoch, [])
        if self.receiver.state == "open" and done < len(moves):
            self.received[epoch] = done + 1
            self.act(lambda: self.receiver.taken(epoch, done, self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 9.0, 21.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.sender.expire(self.now)
        self.act(lambda: self.receiver.expire(self.now))

    @rule()
    def channel_breaks(self) -> None:
        self.to_receiver.clear()
        self.to_sender.clear()
        self.sender.peer_lost(self.now)
        self.act(lambda: self.receiver.peer_lost(self.now))

    @invariant()
    def both_have_one_order(self) -> None:
        for epoch, moves in self.receiving.moves.items():
            assert moves == self.sending.moves[epoch][: len(moves)]

    @invariant()
    def what_is_on_the_way_is_bounded_and_in_time(self) -> None:
        assert len(self.on_way) <= LIMITS.window
        waiting = self.receiver.next_deadline()
        assert (self.sender.next_deadline() is not None) == (
            self.sender.state == "building" or bool(self.on_way)
        )
        assert waiting is not None or self.receiver.state != "building"

    def teardown(self) -> None:
        """Whatever happened, the next shipment arrives."""
        self.sender.lost(self.sender.epoch, "a fresh start", self.now)
        self.settle()
        self.now += LONGEST_PAUSE
        self.want()
        self.deliver_all()
        self.built(0, sender=True)
        self.built(0, sender=False)
        assert self.sender.epoch == self.receiver.epoch
        self.send(A, 0, 1)
        self.deliver_all()
        self.bytes_arrive()
        self.deliver_all()
        assert self.on_way == {}
        assert self.sender.state == self.receiver.state == "open"

    def deliver_all(self) -> None:
        while self.to_receiver or self.to_sender:
            if self.to_receiver:
                self.tell_receiver()
            if self.to_sender:
                self.tell_sender()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, derandomize=True
)
