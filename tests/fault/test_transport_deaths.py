"""Peers that die, hang or come back as somebody else, in processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.receiving import Ended
from kvstore.transport.fetcher import Fetcher
from kvstore.transport.opening import Setting, open_fetcher, open_shipper
from tests.support.transfers import GENERATION, Errand, Noise
from tests.support.transport_pairs import SkippingClock, until
from tests.support.transport_peer import (
    BLOCKS,
    HALF,
    LAYOUT,
    WHOLE,
    Peer,
    fetch,
    setting_at,
    shared_errands,
    source_pages,
)

Start = Callable[..., Peer]
SOURCE = source_pages()
EVEN, ODD = shared_errands()[::2], shared_errands()[1::2]
"""Supplied as a whole, and by half."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "run").mkdir(mode=0o700)
    started: list[Peer] = []

    def of(*arguments: str) -> Peer:
        started.append(Peer(*arguments[:2], tmp_path / "state", *arguments[2:]))
        return started[-1]

    yield of
    for peer in started:
        peer.end()


@pytest.fixture(params=["zmq+tcp", "auto"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    tcp = request.param == "zmq+tcp"
    return "zmq+tcp://127.0.0.1:0" if tcp else f"{request.param}://{tmp_path}/run/ship"


class Receiving:
    """A fetcher in this process, and what it got."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.target = Noise(LAYOUT, BLOCKS, 2)
        self.fetcher: Fetcher = open_fetcher(self.target.pages, LAYOUT, setting)
        self.fetcher.start()
        self._ended: dict[bytes, Ended] = {}

    def ask(self, uri: str, errand: Errand, life: str = GENERATION) -> None:
        self._ended.pop(errand.transfer, None)
        fetch(self.fetcher, self.setting, uri, errand, life)

    def end_of(self, errand: Errand) -> Ended:
        def ended() -> Ended | None:
            self._ended |= {end.transfer: end for end in self.fetcher.take_ended()}
            return self._ended.get(errand.transfer)

        end = until(ended)
        assert end is not None
        return end

    def has(self, errand: Errand, below: int) -> bool:
        return all(
            self.target.of(errand.target[0, at]) == SOURCE.of(errand.source[0, at])
            for at in range(below)
        )


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[Receiving]:
    receiving = Receiving(setting_at(tmp_path / "state"))
    yield receiving
    receiving.fetcher.stop()


def test_a_sender_is_killed_and_another_life_of_it_takes_its_place(
    uri: str, start: Start, receiving: Receiving
) -> None:
    peer = start("send", uri, GENERATION)
    address = peer.said
    receiving.ask(address, ODD[0])
    until(lambda: receiving.has(ODD[0], HALF))
    peer.end()
    end = receiving.end_of(ODD[0])
    assert (end.reason, end.through) == ("peer-lost", HALF)
    start("send", address, "its next life")
    receiving.ask(address, EVEN[0])
    assert receiving.end_of(EVEN[0]).reason == "stale-generation"
    receiving.ask(address, EVEN[1], "its next life")
    assert receiving.end_of(EVEN[1]).reason is None
    assert receiving.has(EVEN[1], WHOLE)


def test_a_stopped_sender_is_given_up_and_has_no_say_when_it_goes_on(
    uri: str, start: Start, receiving: Receiving
) -> None:
    peer = start("send", uri, GENERATION)
    receiving.ask(peer.said, ODD[0])
    until(lambda: receiving.has(ODD[0], HALF))
    peer.process.send_signal(signal.SIGSTOP)
    end = receiving.end_of(ODD[0])
    assert (end.reason, end.through) == ("peer-lost", HALF)
    before = receiving.target.bytes.copy()
    peer.process.send_signal(signal.SIGCONT)
    receiving.ask(peer.said, EVEN[0])
    assert receiving.end_of(EVEN[0]).reason is None
    others = [block for block in range(BLOCKS) if block not in EVEN[0].target.values()]
    assert (receiving.target.bytes[:, others] == before[:, others]).all()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_receiver_that_hangs_or_dies_keeps_nobody_else_from_its_blocks(
    uri: str, start: Start, receiving: Receiving, how: signal.Signals
) -> None:
    """And its own blocks are given up with the lease at the latest."""
    clock = SkippingClock()
    setting = replace(receiving.setting, clock=clock)
    shipper = open_shipper(uri, SOURCE.pages, LAYOUT, GENERATION, setting)
    shipper.start()
    settled: list[bytes] = []

    def all_settled() -> bool:
        settled.extend(shipper.take_settled(0.1))
        return len(settled) == 3

    try:
        peer = start("receive", shipper.uri)
        for errand, blocks in ((EVEN[0], WHOLE), (EVEN[1], WHOLE), (ODD[0], HALF)):
            shipper.open(errand.transfer, errand.prompt, clock() + 60)
            pages = {(0, at): errand.source[0, at] for at in range(blocks)}
            shipper.supply(errand.transfer, pages)
        peer.ask_for(0)
        assert peer.line() == "0 None"
        peer.ask_for(1)
        peer.process.send_signal(how)
        receiving.ask(shipper.uri, EVEN[1])
        assert receiving.end_of(EVEN[1]).reason is None
        assert receiving.has(EVEN[1], WHOLE)
        clock.skip(100)
        until(all_settled)
        assert set(settled) == {EVEN[0].transfer, EVEN[1].transfer, ODD[0].transfer}
    finally:
        shipper.stop()
