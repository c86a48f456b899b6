"""What every transport does, over a quiet wire and over one that delays, repeats, loses and lies.

Each test runs against all of ``TRANSPORTS``; those that take ``weather`` also under the faults
that must have no effect at all: messages that come late or twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.credentials import load_or_create
from kvstore.layout import KVLayout
from kvstore.messages import PROTOCOL_VERSION, Cancel, Ready, Received
from kvstore.sending import Batch
from kvstore.transport.ends import ReceivingEnd
from tests.support.faulty_transport import HARMLESS, SEVERE, Faults
from tests.support.transfers import Errand, layout_of
from tests.support.transport_pairs import BLOCKS, TRANSPORTS, Pair, Place, start_pair, until

Open = Callable[..., Pair]
LAYOUTS = [layout_of(1, 4096, 1), layout_of(4, 4096, 1), layout_of(3, 640, 3)]
LAYOUT = LAYOUTS[2]
WHOLE = (0, 0, 0)
"""All of a prompt's blocks, in each of the layout's groups."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("state")
    load_or_create(state)
    return state


@pytest.fixture
def place(keys: Path, tmp_path: Path) -> Place:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return Place(folder, load_or_create(keys))


@pytest.fixture(params=TRANSPORTS)
def open_pair(request: pytest.FixtureRequest, place: Place) -> Iterator[Open]:
    opened: list[Pair] = []

    def start(layout: KVLayout = LAYOUT, **options: object) -> Pair:
        pair = start_pair(request.param, place, layout, **options)  # type: ignore[arg-type]
        opened.append(pair)
        return pair

    yield start
    for pair in opened:
        pair.close()


@pytest.fixture(params=[None, HARMLESS], ids=["quiet", "late and twice"])
def weather(request: pytest.FixtureRequest) -> Faults | None:
    faults: Faults | None = request.param
    return faults


def complete(pair: Pair, *errands: Errand) -> None:
    """All have ended well, once, at both ends, and every bit is there."""
    assert [end.reason for end in pair.until_ended(*errands)] == [None] * len(errands)
    pair.until_settled(*errands)
    assert all(pair.arrived(errand) for errand in errands)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.layers} layers")
def test_blocks_of_any_layout_arrive_bit_for_bit_and_nothing_else_is_written(
    open_pair: Open, weather: Faults | None, layout: KVLayout
) -> None:
    pair = open_pair(layout, faults=weather)
    before = pair.target.bytes.copy()
    errands = [pair.errands.draw(len(layout.groups)) for _ in range(5)]
    for errand in errands:
        pair.ask(errand)
        pair.open(errand)
        pair.supply(errand)
        complete(pair, errand)
    reserved = {block for errand in errands for block in errand.target.values()}
    others = [block for block in range(BLOCKS) if block not in reserved]
    assert (pair.target.bytes[:, others] == before[:, others]).all()


def test_many_transfers_are_in_flight_at_once_and_each_ends_once_at_either_end(
    open_pair: Open, weather: Faults | None
) -> None:
    pair = open_pair(faults=weather)
    errands = [pair.errands.make(2, (0, 1, 0), 2) for _ in range(24)]
    random.Random(0).shuffle(errands)
    for errand in errands:
        pair.ask(errand)
    for errand in errands[::-1]:
        pair.open(errand)
        pair.supply(errand, below=1)
    for errand in errands:
        pair.supply(errand, since=1)
    complete(pair, *errands)
    pair.round_trip()
    pair.collect()
    assert {pair.times_ended[errand.transfer] for errand in errands} == {1}
    assert {pair.settled[errand.transfer] for errand in errands} == {1}


class Deaf:
    """A receiving end that acknowledges nothing of one transfer."""

    def __init__(self, end: ReceivingEnd) -> None:
        self.transfer = b""
        self._end = end
        self.carriage, self.receive, self.lost = end.carriage, end.receive, end.lost
        self.wake, self.wait, self.close = end.wake, end.wait, end.close

    def send(self, peer: str, message: Ready | Received | Cancel) -> bool:
        if isinstance(message, Received) and message.transfer == self.transfer:
            return True
        return self._end.send(peer, message)


def test_a_window_holds_for_whoever_does_not_acknowledge(open_pair: Open) -> None:
    deaf: list[Deaf] = []

    def wrap(end: ReceivingEnd) -> ReceivingEnd:
        deaf.append(Deaf(end))
        return deaf[0]

    pair = open_pair(LAYOUTS[0], window=4, wrap=wrap)
    before = pair.target.bytes.copy()
    errand = pair.errands.make(12, (0,), 12)
    deaf[0].transfer = errand.transfer
    pair.ask(errand)
    pair.open(errand)
    pair.supply(errand)
    until(lambda: pair.arrived(errand, below=4))
    pair.round_trip()
    pair.round_trip()
    beyond = [block for (_, at), block in errand.target.items() if at >= 4]
    assert (pair.target.bytes[:, beyond] == before[:, beyond]).all()


def test_nobody_sleeps_while_a_batch_could_go(open_pair: Open) -> None:
    """What makes room for one ends the wait, or is seen before it begins."""
    pair = open_pair()
    shipper, slept = pair.shipper, list[Batch]()
    end, wait = shipper._end, shipper._end.wait

    def watched(seconds: float) -> None:
        with shipper._lock:
            batch = shipper._core.next_batch(end.room())
        began = time.monotonic()
        wait(seconds)
        if batch is not None and time.monotonic() - began > 0.8 * seconds:
            slept.append(batch)

    end.wait = watched  # type: ignore[method-assign]
    for count in (1, 10, 30):
        errand = pair.errands.make(count, WHOLE, count)
        pair.open(errand)
        pair.supply(errand)
        pair.ask(errand)
        assert pair.until_ended(errand)[0].reason is None
    assert not slept


@pytest.mark.parametrize("after", [0, 16, 40])
def test_no_byte_is_written_once_abort_has_returned(
    open_pair: Open, weather: Faults | None, after: int
) -> None:
    """However many of its blocks are there by then; the rest is on its way."""
    pair = open_pair(LAYOUTS[1], window=64, faults=weather)
    errand = pair.errands.make(64, (0,), 64)
    pair.ask(errand)
    pair.open(errand)
    pair.supply(errand)
    until(lambda: pair.arrived(errand, below=after))
    pair.fetcher.abort(errand.transfer)
    at_abort = pair.target.bytes.copy()
    end = pair.until_ended(errand)[0]
    mine = list(errand.target.values())
    for _ in range(3):
        pair.round_trip()
    assert (pair.target.bytes[:, mine] == at_abort[:, mine]).all()
    assert end.reason in {None, "abandoned"}
    assert pair.arrived(errand, below=end.through)
    pair.until_settled(errand)


def test_withdrawn_pages_are_never_seen_in_their_new_life(
    open_pair: Open, weather: Faults | None
) -> None:
    pair = open_pair(LAYOUTS[1], window=4, faults=weather)
    for _ in range(6):
        errand = pair.errands.make(12, (0,), 12)
        pair.ask(errand)
        pair.open(errand)
        pair.supply(errand, below=11)
        pair.shipper.withdraw(errand.transfer)
        pair.errands.move(errand, pair.source)  # overwrites what it was computed into before
        pair.round_trip()
        pair.supply(errand)
        end = pair.until_ended(errand)[0]
        assert pair.arrived(errand, below=end.through)
        # A page read by the receiver itself may have been given away first: its digest tells.
        assert end.reason in {None, "digest-mismatch"}
        pair.until_settled(errand)


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("stale-generation", "restarted", {"sender_generation": "old"}),
    ("not-authentic", "does not hold this prompt", {"mac": bytes(32)}),
    ("layout-mismatch", "THEIRS", {"fingerprint": bytes(32), "layout": "THEIRS"}),
    ("protocol", f"{PROTOCOL_VERSION + 1} there", {"version": PROTOCOL_VERSION + 1}),
]


@pytest.mark.parametrize(("reason", "named", "lie"), REFUSED, ids=[r[0] for r in REFUSED])
def test_who_is_not_right_is_refused_and_told_why(
    open_pair: Open, reason: str, named: str, lie: dict[str, Any]
) -> None:
    pair = open_pair()
    before = pair.target.bytes.copy()
    errand = pair.errands.make(2, WHOLE, 2)
    pair.open(errand)
    pair.supply(errand)
    pair.ask(errand, **lie)
    end = pair.until_ended(errand)[0]
    assert end.reason == reason
    assert named in end.detail
    assert (pair.target.bytes == before).all()
    if reason == "layout-mismatch":
        assert LAYOUT.summary in end.detail, "and what it is here"
    if reason == "protocol":
        assert f"{PROTOCOL_VERSION} here" in end.detail


def test_blocks_of_another_life_of_the_sender_have_no_effect(open_pair: Open) -> None:
    pair = open_pair()
    before = pair.target.bytes.copy()
    errand = pair.errands.make(2, WHOLE, 2)
    pair.ask(errand, generation="the one before")
    pair.open(errand)
    pair.supply(errand)
    pair.round_trip()
    pair.collect()
    assert errand.transfer not in pair.ended
    mine = list(errand.target.values())
    assert (pair.target.bytes[:, mine] == before[:, mine]).all()
    pair.clock.skip(1000)
    assert pair.until_ended(errand)[0].reason in {"deadline", "lease-expired"}


@pytest.mark.parametrize("seed", range(3))
def test_in_the_worst_weather_no_page_is_wrong_and_everything_ends_once(
    open_pair: Open, seed: int
) -> None:
    pair = open_pair(faults=Faults(**{**vars(SEVERE), "seed": seed}))
    errands = [pair.errands.make(2, (0, 1, 0), 2) for _ in range(24)]
    for errand in errands:
        pair.ask(errand)
        pair.open(errand)
        pair.supply(errand)
    until(lambda: pair.how_many_ended() >= len(errands) // 2)
    pair.clock.skip(1000)
    pair.until_ended(*errands)
    pair.until_settled(*errands)
    for errand in errands:
        assert pair.arrived(errand, below=pair.ended[errand.transfer].through)
    assert {pair.times_ended[errand.transfer] for errand in errands} == {1}
    assert {pair.settled[errand.transfer] for errand in errands} == {1}


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def use_and_close(open_pair: Open, weather: Faults | None) -> None:
    """With a transfer so large that a second thread helps to read it."""
    pair = open_pair(layout_of(4, 32 << 10, 1), faults=weather)
    errand = pair.errands.make(16, (0,), 16)
    pair.ask(errand)
    pair.open(errand)
    pair.supply(errand)
    complete(pair, errand)
    pair.close()


def test_closing_leaves_no_thread_no_descriptor_and_no_file(
    open_pair: Open, place: Place, weather: Faults | None
) -> None:
    use_and_close(open_pair, weather)  # what a process keeps from its first use on
    threads, descriptors = set(threading.enumerate()), descriptors_open()
    use_and_close(open_pair, weather)
    until(lambda: set(threading.enumerate()) <= threads)
    until(lambda: descriptors_open() <= descriptors)
    assert list(place.folder.iterdir()) == []
