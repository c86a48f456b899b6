"""A shipper and a fetcher over any transport, with their threads, and what both were told."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from kvstore.cluster import Ship
from kvstore.credentials import Credentials
from kvstore.layout import KVLayout
from kvstore.messages import Ready
from kvstore.receiving import Ended, ReceiverCore
from kvstore.sending import SenderCore
from kvstore.transport.digests import Xxh3
from kvstore.transport.ends import ReceivingEnd, SendingEnd
from kvstore.transport.fetcher import Fetch, Fetcher
from kvstore.transport.shipper import Shipper
from kvstore.transport.zeromq_receiving import ZmqReceivingEnd
from kvstore.transport.zeromq_sending import Sender, ZmqSendingEnd
from tests.support.faulty_transport import Faults, FaultyReceivingEnd, FaultySendingEnd
from tests.support.memory_transport import MemoryReceivingEnd, MemorySendingEnd
from tests.support.transfers import GENERATION, Errand, Errands, Noise

TRANSPORTS = ("zmq+tcp", "bulk", "zmq+ipc", "shm", "auto", "gloo", "memory")
"""``bulk`` is zmq+tcp with KV on a plain connection beside."""

BLOCKS = 160
DEADLINE_SECONDS = 100.0
SECONDS = 60.0
"""How long a test waits for what must happen."""

Found = TypeVar("Found")


def until(condition: Callable[[], Found], seconds: float = SECONDS) -> Found:
    """What ``condition`` says once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.002)
    raise AssertionError("it did not happen in time")


class SkippingClock:
    """The host's clock, and ``skip`` to let time pass without waiting for it."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead

    def skip(self, seconds: float) -> None:
        self._ahead += seconds


@dataclass(frozen=True)
class Place:
    """Where a test's sockets and keys are."""

    folder: Path
    credentials: Credentials


def open_ends(
    transport: str, place: Place, source: Noise, target: Noise
) -> tuple[SendingEnd, ReceivingEnd]:
    """Both ends of ``transport``, not yet connected."""
    if transport == "memory":
        uri = "memory://prefill"
        sending = MemorySendingEnd(uri, source.pages, GENERATION, Xxh3())
        return sending, MemoryReceivingEnd({uri: sending}, target.pages, Xxh3(), "frames")
    ship = Ship(bulk="authenticated" if transport == "bulk" else "encrypted")
    local = f"{transport}://{place.folder}/ship"
    remote = {"zmq+tcp": "zmq+tcp", "bulk": "zmq+tcp", "gloo+tcp": "gloo"}
    uri = f"{remote[transport]}://127.0.0.1:0" if transport in remote else local
    sender = Sender(GENERATION, bytes(32))
    return (
        ZmqSendingEnd(uri, source.pages, sender, ship, place.credentials),
        ZmqReceivingEnd(target.pages, bytes(32), ship, place.credentials),
    )


@dataclass
class Pair:
    """Both ranks, without engines. To be closed."""

    shipper: Shipper
    fetcher: Fetcher
    layout: KVLayout
    key: bytes
    source: Noise
    target: Noise
    clock: SkippingClock
    errands: Errands
    asked: list[Errand] = field(default_factory=list)
    settled: Counter[bytes] = field(default_factory=Counter)
    ended: dict[bytes, Ended] = field(default_factory=dict)
    times_ended: Counter[bytes] = field(default_factory=Counter)

    def ask(self, errand: Errand, generation: str = GENERATION, **changes: object) -> None:
        """Decode reserves memory and asks; ``changes`` falsify what it says in Ready."""
        self.asked.append(errand)
        deadline = self.clock() + DEADLINE_SECONDS
        reservation = errand.reservation(self.shipper.uri, deadline, generation)
        ready: Ready = msgspec.structs.replace(errand.ready(self.layout, self.key), **changes)
        self.fetcher.fetch(Fetch(reservation, ready))

    def open(self, errand: Errand) -> None:
        self.shipper.open(errand.transfer, errand.prompt, self.clock() + DEADLINE_SECONDS)

    def supply(self, errand: Errand, below: int = 1 << 20, since: int = 0) -> None:
        pages = {at: block for at, block in errand.source.items() if since <= at[1] < below}
        self.shipper.supply(errand.transfer, pages)

    def collect(self) -> None:
        """Take what either end has to tell."""
        self.settled.update(self.shipper.take_settled())
        for end in self.fetcher.take_ended():
            self.times_ended[end.transfer] += 1
            self.ended[end.transfer] = end

    def until_ended(self, *errands: Errand) -> list[Ended]:
        def all_ended() -> bool:
            self.collect()
            return all(errand.transfer in self.ended for errand in errands)

        until(all_ended)
        return [self.ended[errand.transfer] for errand in errands]

    def until_settled(self, *errands: Errand) -> None:
        def all_settled() -> bool:
            self.collect()
            return all(errand.transfer in self.settled for errand in errands)

        until(all_settled)

    def how_many_ended(self) -> int:
        self.collect()
        return len(self.ended)

    def arrived(self, errand: Errand, below: int = 1 << 20) -> bool:
        """Whether all of it, or what lies below a position, is there bit for bit."""
        return all(
            self.target.of(errand.target[at]) == self.source.of(block)
            for at, block in errand.source.items()
            if at[1] < below
        )

    def round_trip(self) -> None:
        """Everything sent before has been dealt with: a transfer of one block begins and ends."""
        errand = self.errands.make(1, (0,) * len(self.layout.groups), 1)
        self.ask(errand)
        self.open(errand)
        self.supply(errand)
        self.until_ended(errand)

    def close(self) -> None:
        self.fetcher.stop()
        self.shipper.stop()


def start_pair(
    transport: str,
    place: Place,
    layout: KVLayout,
    *,
    window: int = 64,
    faults: Faults | None = None,
    wrap: Callable[[ReceivingEnd], ReceivingEnd] | None = None,
) -> Pair:
    """Both ends, running; ``wrap`` goes around the receiving one."""
    source, target = Noise(layout, BLOCKS, 1), Noise(layout, BLOCKS, 2)
    sending, receiving = open_ends(transport, place, source, target)
    if faults is not None:
        sending = FaultySendingEnd(sending, faults)
        receiving = FaultyReceivingEnd(receiving, replace(faults, seed=faults.seed + 1))
    if wrap is not None:
        receiving = wrap(receiving)
    key = place.credentials.transport_key()
    clock = SkippingClock()
    core = SenderCore(GENERATION, layout, key, window=window, limit=64)
    shipper = Shipper(core, source.pages, sending, clock)
    fetcher = Fetcher(ReceiverCore(layout.block_bytes), target.pages, receiving, clock)
    shipper.start()
    fetcher.start()
    errands = Errands(random.Random(faults.seed if faults else 0), BLOCKS, BLOCKS)
    return Pair(shipper, fetcher, layout, key, source, target, clock, errands)
