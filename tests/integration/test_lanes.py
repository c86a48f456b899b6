"""Lanes as a transport: what the contract does not ask of others. Over gloo, in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.cluster import Ship
from kvstore.credentials import load_or_create
from kvstore.errors import ConfigError
from kvstore.lane import Limits
from kvstore.messages import Shipment
from kvstore.receiving import ReceiverCore
from kvstore.transport import lanes_receiving, lanes_sending, runs
from kvstore.transport.collective import _Mover
from kvstore.transport.fetcher import Fetcher
from kvstore.transport.sockets import own_address
from kvstore.transport.zeromq_receiving import ZmqReceivingEnd
from kvstore.transport.zeromq_sending import Sender, ZmqSendingEnd
from tests.support.transfers import GENERATION, Errand, Noise, layout_of
from tests.support.transport_pairs import BLOCKS, Pair, Place, start_pair, until

LAYOUT = layout_of(4, 4096, 1)
Open = Callable[[str], Pair]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return Place(folder, load_or_create(tmp_path / "state"))


@pytest.fixture
def open_pair(place: Place) -> Iterator[Open]:
    opened: list[Pair] = []

    def start(transport: str) -> Pair:
        opened.append(start_pair(transport, place, LAYOUT))
        return opened[-1]

    yield start
    for pair in opened:
        pair.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not move ends its epoch within a second."""
    monkeypatch.setattr(runs, "LIMITS", Limits(move_seconds=1.0))


def begin(pair: Pair, blocks: int = 4) -> Errand:
    errand = pair.errands.make(blocks, (0,), blocks)
    pair.ask(errand)
    pair.open(errand)
    return errand


def carry(pair: Pair) -> None:
    """A transfer that ends well."""
    errand = begin(pair)
    pair.supply(errand)
    assert [end.reason for end in pair.until_ended(errand)] == [None]
    pair.until_settled(errand)
    assert pair.arrived(errand)


def way(pair: Pair) -> str | None:
    """How the receiving end has its blocks brought."""
    end = pair.fetcher._end
    assert isinstance(end, ZmqReceivingEnd)
    return end._peers[pair.shipper.uri].carriage


@pytest.mark.parametrize("transport", ["gloo", "gloo+tcp"])
def test_blocks_go_by_a_lane(open_pair: Open, transport: str) -> None:
    pair = open_pair(transport)
    for _ in range(3):
        carry(pair)
    assert way(pair) == "lane"
    assert isinstance(pair.shipper._end, ZmqSendingEnd)
    lanes = pair.shipper._end._lanes
    assert lanes is not None
    assert [lane.epoch for lane in lanes._lanes.values()] == [1], "one communicator for all"


def test_a_transfer_lost_with_its_lane_ends_at_both_ends_and_the_next_has_another(
    open_pair: Open, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = open_pair("gloo")
    carry(pair)
    submit = _Mover.submit

    def keep_from_moving(mover: _Mover, shipment: Shipment) -> None:
        if mover._work.name != "send":
            submit(mover, shipment)

    monkeypatch.setattr(_Mover, "submit", keep_from_moving)
    whole, half = begin(pair), begin(pair)
    pair.supply(whole)
    pair.supply(half, below=2)
    assert {end.reason for end in pair.until_ended(whole, half)} == {"peer-lost"}
    pair.until_settled(whole, half)
    monkeypatch.setattr(_Mover, "submit", submit)
    carry(pair)
    assert {pair.times_ended[one.transfer] for one in (whole, half)} == {1}


def test_a_receiver_that_is_gone_is_noticed_with_the_next_shipment(open_pair: Open) -> None:
    pair = open_pair("gloo")
    errand = begin(pair)
    pair.supply(errand, below=1)
    until(lambda: pair.arrived(errand, below=1))
    pair.fetcher.stop()
    pair.supply(errand, below=2)

    def settled() -> bool:
        pair.settled.update(pair.shipper.take_settled())
        return errand.transfer in pair.settled

    until(settled)


def test_an_idle_lane_gives_way_to_another_receivers(
    open_pair: Open, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_sending, "LANES", 1)
    monkeypatch.setattr(runs, "LIMITS", Limits(build_seconds=60.0))  # no second try is in time
    pair = open_pair("gloo")
    end = ZmqReceivingEnd(pair.target.pages, LAYOUT.fingerprint, Ship(), place.credentials)
    core = ReceiverCore(LAYOUT.block_bytes)
    other = replace(pair, fetcher=Fetcher(core, pair.target.pages, end, pair.clock))
    other.fetcher.start()
    try:
        for one in (pair, other, pair, other):
            carry(one)
            assert way(one) == "lane"
    finally:
        other.fetcher.stop()


def test_a_receiver_with_too_many_lanes_has_blocks_sent_in_frames(
    open_pair: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_receiving, "LANES", 0)
    pair = open_pair("gloo")
    carry(pair)
    assert way(pair) == "frames"


@pytest.mark.parametrize(
    ("there", "asked", "named"), [("gloo", "nccl", "gloo there"), ("zmq+ipc", "gloo", "none there")]
)
def test_a_lane_that_cannot_be_is_refused(
    open_pair: Open, there: str, asked: str, named: str
) -> None:
    pair = open_pair(there)
    errand = pair.errands.make(1, (0,), 1)
    wrong = pair.shipper.uri.replace(there, asked, 1)
    monitored = replace(pair, shipper=_Elsewhere(wrong))  # type: ignore[arg-type]
    monitored.ask(errand)
    (end,) = pair.until_ended(errand)
    assert end.reason == "peer-lost"
    assert named in end.detail


class _Elsewhere:
    """A sender under a wrong address."""

    def __init__(self, uri: str) -> None:
        self.uri = uri


def test_host_memory_has_no_nccl(place: Place) -> None:
    pages, sender = Noise(LAYOUT, BLOCKS, 1).pages, Sender(GENERATION, LAYOUT.fingerprint)
    with pytest.raises(ConfigError, match="by gloo, not by nccl"):
        ZmqSendingEnd(f"nccl://{place.folder}/ship", pages, sender, Ship(), place.credentials)
    assert list(place.folder.iterdir()) == []


def test_a_hosts_own_address_is_the_one_the_other_end_reaches(place: Place) -> None:
    assert own_address(f"zmq+ipc://{place.folder}/ship") == "127.0.0.1"
    assert own_address("zmq+tcp://127.0.0.1:7101") == "127.0.0.1"
    with pytest.raises(ConfigError, match="neither"):
        own_address("http://127.0.0.1")
