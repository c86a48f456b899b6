"""Ten thousand transfers in bad weather: messages repeated, late, reordered; bits flipped."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from kvstore.codec import decode
from kvstore.messages import Blocks, Carriage
from tests.support.exchange import Exchange
from tests.support.memory_transport import Parcel
from tests.support.transfers import Errand, Errands, Noise, layout_of

TRIALS = 10_000
BLOCKS = 96
CARRIED: tuple[Carriage, ...] = ("frames", "pages")
LAYOUTS = [layout_of(2, 32, groups) for groups in (1, 2, 3)]


class Weather:
    """Fresh pages for each trial, without the cost of making them."""

    def __init__(self) -> None:
        self._source, self._target = Noise(LAYOUTS[0], BLOCKS, 1), Noise(LAYOUTS[0], BLOCKS, 2)
        self._before = self._source.bytes.copy(), self._target.bytes.copy()

    def exchange(self, rng: random.Random, count: int) -> tuple[Exchange, list[Errand]]:
        """``count`` errands, asked for and opened in any order, over either carriage."""
        self._source.bytes[:], self._target.bytes[:] = self._before
        groups = rng.randint(1, 3)
        exchange = Exchange(
            LAYOUTS[groups - 1], self._source, self._target, rng.choice(CARRIED), rng.randint(1, 5)
        )
        errands = Errands(rng, BLOCKS, BLOCKS)
        drawn = [errands.draw(groups, 6) for _ in range(count)]
        for errand in drawn:
            exchange.ask(errand)
        return exchange, drawn


@pytest.fixture(scope="module")
def weather() -> Weather:
    return Weather()


def repeat(rng: random.Random, queue: deque[Parcel], attic: list[Parcel]) -> None:
    """A copy of one message, now or much later, behind the message itself."""
    if queue:
        at = rng.randrange(len(queue))
        queue.insert(rng.randint(at + 1, len(queue)), queue[at])
        attic.append(queue[at])
    elif attic:
        queue.append(attic.pop(rng.randrange(len(attic))))


def reorder(rng: random.Random, queue: deque[Parcel]) -> None:
    if len(queue) > 1:
        at = rng.randrange(len(queue))
        parcel = queue[at]
        del queue[at]
        queue.insert(rng.randrange(len(queue) + 1), parcel)


def steps_of(rng: random.Random, exchange: Exchange, errand: Errand) -> list[Callable[[], object]]:
    """What a prefill engine does for one errand: it takes it up and computes it in two parts."""
    part = rng.randint(0, errand.stop)
    return [
        lambda: exchange.open(errand),
        lambda: exchange.supply(errand, part),
        lambda: exchange.supply(errand, errand.stop),
    ]


def storm(rng: random.Random, exchange: Exchange, drawn: list[Errand], *, ordered: bool) -> None:
    """Random turns until every prompt is computed; then what is left, and what comes too late."""
    attics: tuple[list[Parcel], list[Parcel]] = ([], [])
    queues = (exchange.up, exchange.down)
    steps = [step for errand in drawn for step in steps_of(rng, exchange, errand)]
    while steps:
        if rng.random() < 0.3:
            steps.pop(0)()
        turn = rng.choice((exchange.ship, exchange.hear_receiver, exchange.hear_sender))
        turn()
        side = rng.randrange(2)
        if rng.random() < 0.4:
            repeat(rng, queues[side], attics[side])
        if not ordered and rng.random() < 0.4:
            reorder(rng, queues[side])
    exchange.run_dry()
    for queue, attic in zip(queues, attics, strict=True):
        queue.extend(rng.sample(attic, min(len(attic), 8)))
    exchange.run_dry()


@pytest.mark.parametrize("ordered", [True, False], ids=["in order", "reordered"])
def test_any_interleaving_ends_once_with_no_wrong_page(weather: Weather, ordered: bool) -> None:
    complete = 0
    for trial in range(TRIALS // 2):
        rng = random.Random(trial)
        exchange, drawn = weather.exchange(rng, 2)
        storm(rng, exchange, drawn, ordered=ordered)
        if ordered:
            assert [exchange.reason(errand) for errand in drawn] == [None, None], trial
        exchange.expire(1000.0)
        exchange.run_dry()
        exchange.check_told_once()
        exchange.check_pages()
        complete += sum(exchange.reason(errand) is None for errand in drawn)
    assert complete > TRIALS // 4, "most of these storms should not have sunk everything"


def flipped(rng: random.Random, data: bytes) -> bytes:
    bits = int.from_bytes(data, "little") ^ (1 << rng.randrange(len(data) * 8))
    return bits.to_bytes(len(data), "little")


def flip(rng: random.Random, exchange: Exchange, queue: deque[Parcel]) -> str:
    """Flip one bit of the newest parcel, or of a page it tells of; what was hit."""
    parcel = queue.pop()
    message = decode(parcel.header)
    told = isinstance(message, Blocks) and message.pages
    if rng.random() < 0.5 and parcel.payload is not None:
        queue.append(Parcel(parcel.header, flipped(rng, parcel.payload)))
        return "payload"
    if rng.random() < 0.5 and isinstance(message, Blocks) and told:
        page = exchange.source.bytes[:, rng.choice(message.pages)]
        layer, byte = rng.randrange(page.shape[0]), rng.randrange(page.shape[1])
        page[layer, byte] ^= 1 << rng.randrange(7)
        queue.append(parcel)
        return "page"
    queue.append(Parcel(flipped(rng, parcel.header), parcel.payload))
    return "header"


def fly(rng: random.Random, exchange: Exchange, errand: Errand) -> str | None:
    """Run one transfer and flip one bit on its way; None when there was no occasion."""
    exchange.open(errand)
    exchange.supply(errand, 99)
    hit = None
    while hit is None and (exchange.up or exchange.down or exchange.ship()):
        queue = exchange.down or exchange.up
        if queue and rng.random() < 0.3:
            hit = flip(rng, exchange, queue)
        rng.choice((exchange.ship, exchange.hear_receiver, exchange.hear_sender))()
    exchange.run_dry()
    return hit


def test_no_flipped_bit_is_ever_visible(weather: Weather) -> None:
    hits = {"header": 0, "payload": 0, "page": 0}
    seed = 0
    while sum(hits.values()) < TRIALS:
        seed += 1
        rng = random.Random(seed)
        exchange, (errand,) = weather.exchange(rng, 1)
        hit = fly(rng, exchange, errand)
        exchange.expire(1000.0)
        exchange.run_dry()
        exchange.check_told_once()  # each end has compared what became visible
        exchange.check_pages()
        if hit in {"payload", "page"}:
            assert exchange.reason(errand) == "digest-mismatch", seed
        if hit is not None:
            hits[hit] += 1
    assert min(hits.values()) > TRIALS // 20, hits


def test_no_bit_of_a_header_sends_a_block_elsewhere(weather: Weather) -> None:
    """Every bit of a ``Blocks`` whose groups await the same position; the right one follows."""
    bit, bits = 0, 1
    while bit < bits:
        rng = random.Random(1)
        fresh, _ = weather.exchange(rng, 0)
        exchange = Exchange(LAYOUTS[2], fresh.source, fresh.target, "frames")
        errand = Errands(rng, BLOCKS, BLOCKS).make(4, (2, 2, 2), 4)
        exchange.ask(errand)
        exchange.open(errand)
        exchange.supply(errand, 99)
        exchange.hear_receiver()
        exchange.ship()
        (right,) = exchange.down
        bits = len(right.header) * 8
        header = int.from_bytes(right.header, "little") ^ (1 << bit)
        exchange.down.appendleft(Parcel(header.to_bytes(bits // 8, "little"), right.payload))
        exchange.run_dry()
        exchange.expire(1000.0)
        exchange.run_dry()
        exchange.check_told_once()
        exchange.check_pages()
        bit += 1
