"""Peers that hold a key and mean ill, and those who only knock: what they cost, and whom.

A sending end in a process of its own is measured. What it may grow by under any of this is
``GROWTH_MIB``: its staging, and a receive queue full of the longest messages it takes.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from msgspec.structs import replace
from zmq.utils.monitor import recv_monitor_message

from kvstore.codec import encode
from kvstore.messages import Cancel, Hello, Ready, Received
from kvstore.transport.opening import open_fetcher
from kvstore.transport.sockets import SocketOptions, dial
from tests.support.transfers import GENERATION, Noise
from tests.support.transport_pairs import until
from tests.support.transport_peer import (
    BLOCKS,
    LAYOUT,
    WHOLE,
    Peer,
    fetch,
    setting_at,
    shared_errands,
    source_pages,
)

GROWTH_MIB = 16 + 32
HALF_OPEN = 1000
EACH = 10_000
"""Messages that one attacker sends at least."""

ERRANDS = shared_errands()[::2]
SOURCE = source_pages()
Attack = Callable[["Victim"], None]


class Victim:
    """A sending end over TCP, and honest receivers that want something of it."""

    def __init__(self, state: Path) -> None:
        self.setting = setting_at(state)
        self.peer = Peer("send", "zmq+tcp://127.0.0.1:0", state, GENERATION)
        self.uri = self.peer.said
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._left = iter(ERRANDS)
        self.serves()
        self.base_mib = self.peer.mib()
        self.base = self.peer.seen.num_fds(), self.peer.seen.num_threads()

    def serves(self) -> None:
        """An honest receiver connects and gets its blocks bit for bit."""
        errand = next(self._left)
        target = Noise(LAYOUT, BLOCKS, 2)
        fetcher = open_fetcher(target.pages, LAYOUT, self.setting)
        fetcher.start()
        fetch(fetcher, self.setting, self.uri, errand, GENERATION)
        (end,) = until(fetcher.take_ended)
        fetcher.stop()
        assert end.reason is None
        for place, block in errand.source.items():
            assert target.of(errand.target[place]) == SOURCE.of(block)

    def grown_mib(self) -> float:
        return self.peer.mib() - self.base_mib

    def recovers(self) -> None:
        """Descriptors and threads are those of the beginning again."""
        until(lambda: self.peer.seen.num_fds() <= self.base[0])
        until(lambda: self.peer.seen.num_threads() <= self.base[1])

    def address(self) -> tuple[str, int]:
        host, _, port = self.uri.removeprefix("zmq+tcp://").rpartition(":")
        return host, int(port)

    @contextmanager
    def insider(self, queue: int = 1000) -> Iterator[zmq.Socket[bytes]]:
        """A connection of somebody who holds a decode worker's key, and reads nothing."""
        options = SocketOptions(send_queue=queue, receive_queue=1, heartbeats=False)
        credentials = self.setting.credentials
        dealer = dial(self.context, self.uri, "decode", "prefill", credentials, options)
        assert dealer.poll(10_000, zmq.POLLOUT)
        yield dealer
        dealer.close(linger=0)

    def close(self) -> None:
        self.context.destroy(linger=0)
        self.peer.end()


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    victim = Victim(tmp_path_factory.mktemp("state"))
    yield victim
    victim.close()


@pytest.fixture(autouse=True)
def unharmed(victim: Victim) -> Iterator[None]:
    """After each attack: served as before, not much larger, nothing left over."""
    yield
    victim.serves()
    assert victim.grown_mib() < GROWTH_MIB
    victim.recovers()


def ready(rng: random.Random, **changes: Any) -> Ready:
    """As good as one can be that nobody's prompt stands behind."""
    errand = replace(ERRANDS[0].ready(LAYOUT, bytes(32)), transfer=rng.randbytes(16))
    return replace(errand, **changes)


def test_a_thousand_half_open_connections(victim: Victim) -> None:
    """Half say nothing, half stop in the middle of a greeting, and none ever hangs up."""
    strangers = [socket.create_connection(victim.address()) for _ in range(HALF_OPEN)]
    for stranger in strangers[::2]:
        stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x03")
    victim.serves()
    assert victim.grown_mib() < GROWTH_MIB
    victim.recovers()  # it hangs up on those who never say who they are
    for stranger in strangers:
        stranger.close()


def test_what_is_no_zeromq_at_all(victim: Victim) -> None:
    rng = random.Random(1)
    strangers = [socket.create_connection(victim.address()) for _ in range(64)]
    for stranger in strangers:
        stranger.sendall(rng.randbytes(10_000))
    victim.serves()
    for stranger in strangers:
        stranger.close()


def test_a_frame_beyond_the_limit_costs_its_sender_the_connection(victim: Victim) -> None:
    with victim.insider() as dealer:
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.send(bytes(64 << 10))
        assert monitor.poll(10_000)
        recv_monitor_message(monitor)
        dealer.disable_monitor()


def flood(victim: Victim, messages: Callable[[], list[bytes]]) -> None:
    """Send many, and go on until an honest receiver has been served in the middle of it."""
    served = threading.Event()

    def send() -> None:
        with victim.insider() as dealer:
            sent = 0
            while sent < EACH or not served.is_set():
                assert dealer.poll(10_000, zmq.POLLOUT)
                dealer.send_multipart(messages(), zmq.NOBLOCK)
                sent += 1

    attackers = [threading.Thread(target=send) for _ in range(2)]
    for attacker in attackers:
        attacker.start()
    try:
        victim.serves()
    finally:
        served.set()
        for attacker in attackers:
            attacker.join(30)
            assert not attacker.is_alive()
    assert victim.grown_mib() < GROWTH_MIB


def test_garbage_without_end(victim: Victim) -> None:
    rng = random.Random(2)
    flood(victim, lambda: [rng.randbytes(rng.choice((0, 1, 100, 5000)))])


def test_messages_of_many_frames_without_end(victim: Victim) -> None:
    flood(victim, lambda: [encode(Cancel(bytes(16)))] * 5)


def test_greetings_without_end_whose_answers_nobody_reads(victim: Victim) -> None:
    flood(victim, lambda: [encode(Hello(3))])


def test_requests_without_end(victim: Victim) -> None:
    """Of transfers that nobody will ever take up, for as long as the field holds."""
    rng = random.Random(3)
    flood(victim, lambda: [encode(ready(rng, ttl_ms=1 << 32))])


def test_acknowledgements_of_what_others_are_sent(victim: Victim) -> None:
    transfers = [errand.transfer for errand in shared_errands()]
    rng = random.Random(4)
    lies = [Received(transfer, 0, WHOLE) for transfer in transfers] + list(map(Cancel, transfers))
    flood(victim, lambda: [encode(rng.choice(lies))])


def test_receivers_that_ask_for_much_and_read_nothing(victim: Victim) -> None:
    """What is meant for them waits in the sender's staging, until they are given up."""
    hostages = [*ERRANDS[-12:], *shared_errands()[1::2]]
    key = victim.setting.credentials.transport_key()
    with victim.insider() as dealer:
        for hostage in hostages:
            dealer.send(encode(hostage.ready(LAYOUT, key)))
        victim.serves()
