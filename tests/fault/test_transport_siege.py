"""Receivers that take too much, ask for what is not offered, or are nobody: others are served."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import zmq

from kvstore.cluster import Ship
from kvstore.codec import encode, well_formed
from kvstore.credentials import load_or_create
from kvstore.layout import KVLayout
from kvstore.messages import Blocks, Cancel, Carriage, Failed, Ready
from kvstore.pages import KVPages
from kvstore.receiving import ReceiverCore
from kvstore.sending import Batch
from kvstore.transfer import Prompt
from kvstore.transport.digests import Xxh3
from kvstore.transport.ends import FromSender
from kvstore.transport.fetcher import Fetch, Fetcher
from kvstore.transport.opening import open_fetcher, open_shipper
from kvstore.transport.shipper import Shipper
from kvstore.transport.sockets import SocketOptions, dial
from kvstore.transport.zeromq_sending import Sender, ZmqSendingEnd
from tests.support.memory_transport import MemoryReceivingEnd, MemorySendingEnd
from tests.support.transfers import GENERATION, Errand, Errands, Noise, layout_of
from tests.support.transport_pairs import SkippingClock, until
from tests.support.transport_peer import setting_at

SMALL, LARGE = layout_of(2, 4096, 1), layout_of(1, 1 << 20, 1)
STRANGER_MIB, STRANGER_BOUND_MIB = 64, 32


@contextmanager
def sending(tmp_path: Path, layout: KVLayout, pages: KVPages, uri: str) -> Iterator[Shipper]:
    """A shipper of ``pages`` at ``uri``."""
    (tmp_path / "run").mkdir(mode=0o700)
    setting = replace(setting_at(tmp_path / "state"), clock=SkippingClock())
    shipper = open_shipper(uri, pages, layout, GENERATION, setting)
    shipper.start()
    try:
        yield shipper
    finally:
        shipper.stop()


def test_slices_of_one_transfer_have_keys_of_their_own(tmp_path: Path) -> None:
    """Else a frame of one, swapped on the wire, would be accepted as the other's."""
    credentials, ship = load_or_create(tmp_path / "state"), Ship(bulk="authenticated")
    source, tags = Noise(SMALL, 8, 1), []
    for fingerprint in (bytes(32), b"s" * 32):
        sender = Sender(GENERATION, fingerprint)
        end = ZmqSendingEnd("zmq+tcp://127.0.0.1:0", source.pages, sender, ship, credentials)
        batch = Batch(b"t" * 16, b"peer", "bulk", b"route", 0, 5, (3,))
        tags.append(end.load(batch).message.digests)
        end.close()
    assert tags[0] != tags[1]


def test_a_stranger_at_the_bulk_port_costs_a_bounded_amount(tmp_path: Path) -> None:
    """A message whose frames never end counts against no queue; so nobody unknown may send any."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    body = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    more = (b"\x01" + bytes([200]) + bytes(200)) * 4096
    source, ship = Noise(SMALL, 8, 1), Ship(bulk="authenticated")
    sender, credentials = Sender(GENERATION, SMALL.fingerprint), load_or_create(tmp_path / "state")
    end = ZmqSendingEnd("zmq+tcp://127.0.0.1:0", source.pages, sender, ship, credentials)
    try:
        host, _, port = end._welcome.bulk.removeprefix("zmq+tcp://").rpartition(":")
        before = psutil.Process().memory_info().rss
        with socket.create_connection((host, int(port)), 20) as stranger, suppress(OSError):
            stranger.sendall(greeting)
            stranger.recv(64, socket.MSG_WAITALL)
            stranger.sendall(bytes([4, len(body)]) + body)
            for _ in range(STRANGER_MIB * (1 << 20) // len(more)):
                stranger.sendall(more)
                end.receive()
        grown = psutil.Process().memory_info().rss - before
        assert grown >> 20 < STRANGER_BOUND_MIB
    finally:
        end.close()


def test_a_buffer_that_comes_free_ends_the_wait_for_one(tmp_path: Path) -> None:
    """Nothing else would: the receiver that took the bytes may have said all it has to say."""
    uri = f"zmq+ipc://{tmp_path}/run/ship"
    (tmp_path / "run").mkdir(mode=0o700)
    source, credentials = Noise(LARGE, 16, 1), load_or_create(tmp_path / "state")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    end = ZmqSendingEnd(uri, source.pages, Sender(GENERATION, bytes(32)), Ship(), credentials)
    slow = context.socket(zmq.DEALER)
    try:
        slow.setsockopt(zmq.RCVHWM, 1)
        slow.connect(uri.removeprefix("zmq+"))
        slow.send(encode(Cancel(b"t" * 16)))
        end.wait(20)
        heard = end.receive()
        assert heard is not None
        peer, sent = heard.peer, 0
        while end.room()("frames", peer, 0):
            end.post(end.load(Batch(b"t" * 16, peer, "frames", b"", 0, sent, (sent,))))
            sent += 1
        taker = threading.Thread(target=lambda: [slow.recv_multipart() for _ in range(sent)])
        taker.start()
        while not end.room()("frames", peer, 0):
            asked = time.monotonic()
            end.wait(60)
            assert time.monotonic() - asked < 60
        taker.join(20)
    finally:
        slow.close(linger=0)
        end.close()
        context.term()


def test_a_receiver_that_lags_behind_many_short_prompts_loses_none(tmp_path: Path) -> None:
    """More of them than any queue takes: what does not fit waits with the sender."""
    layout, prompts = layout_of(1, 256 << 10, 1), 1000
    source = Noise(layout, prompts, 1)
    key = setting_at(tmp_path / "state").credentials.transport_key()
    uri = f"zmq+ipc://{tmp_path}/run/ship"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    errands = Errands(random.Random(1), prompts, prompts)
    with sending(tmp_path, layout, source.pages, uri) as shipper:
        lagging = context.socket(zmq.DEALER)
        lagging.setsockopt(zmq.RCVHWM, 1)
        lagging.setsockopt(zmq.SNDHWM, prompts)
        lagging.connect(uri.removeprefix("zmq+"))
        for errand in (errands.make(1, (0,), 1) for _ in range(prompts)):
            shipper.open(errand.transfer, errand.prompt, time.monotonic() + 900)
            shipper.supply(errand.transfer, errand.source)
            lagging.send(encode(errand.ready(layout, key)))
        time.sleep(1.5)  # less than it takes to be given up
        came = 0
        while came < prompts and lagging.poll(20_000):
            header, *_ = lagging.recv_multipart()
            came += isinstance(well_formed(header), Blocks)
        context.destroy(linger=0)
    assert came == prompts


class Chatterbox(MemoryReceivingEnd):
    """There is always something more to be heard."""

    def receive(self) -> FromSender | None:
        return FromSender("memory://nobody", Failed(bytes(16), "overloaded", ""), None)


def test_who_never_stops_talking_keeps_no_request_from_leaving() -> None:
    source, target = Noise(SMALL, 8, 1), Noise(SMALL, 8, 2)
    sending = MemorySendingEnd("memory://prefill", source.pages, GENERATION, Xxh3())
    end = Chatterbox({sending.uri: sending}, target.pages, Xxh3(), "frames")
    core = ReceiverCore(target.pages.block_bytes)
    fetcher = Fetcher(core, target.pages, end, time.monotonic)
    errand = Errands(random.Random(1), 8, 8).make(2, (0,), 2)
    reservation = errand.reservation(sending.uri, time.monotonic() + 900, GENERATION)
    fetcher.start()
    try:
        fetcher.fetch(Fetch(reservation, errand.ready(SMALL, bytes(32))))
        asked = until(sending.receive, 5)
        assert asked is not None
        assert isinstance(asked.message, Ready)
    finally:
        fetcher.stop()


def test_who_takes_nothing_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    source, target = Noise(LARGE, 48, 1), Noise(LARGE, 48, 2)
    setting, over = setting_at(tmp_path / "state"), threading.Event()
    key = setting.credentials.transport_key()
    errands = Errands(random.Random(1), 48, 48)
    hostage, honest = errands.make(32, (0,), 32), errands.make(1, (0,), 1)
    uri = f"zmq+ipc://{tmp_path}/run/ship"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with sending(tmp_path, LARGE, source.pages, uri) as shipper:
        fetcher = open_fetcher(target.pages, LARGE, setting)
        fetcher.start()
        for errand in (hostage, honest):
            shipper.open(errand.transfer, errand.prompt, time.monotonic() + 900)
            shipper.supply(errand.transfer, errand.source)
        greedy = context.socket(zmq.DEALER)
        greedy.setsockopt(zmq.RCVHWM, 1)
        greedy.connect(uri.removeprefix("zmq+"))
        greedy.send(encode(hostage.ready(LARGE, key)))

        def say_something() -> None:
            while not over.wait(0.5):  # it is there all the time
                greedy.send(encode(Cancel(bytes(16))))

        alive = threading.Thread(target=say_something)
        alive.start()
        try:
            reservation = honest.reservation(uri, time.monotonic() + 30)
            fetcher.fetch(Fetch(reservation, honest.ready(LARGE, key)))
            ended = fetcher.take_ended(30.0)
            assert [end.reason for end in ended] == [None]
        finally:
            over.set()
            alive.join(5)
            context.destroy(linger=0)
            fetcher.stop()


def test_a_receiver_that_lags_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    layout, blocks = layout_of(1, 8 << 10, 1), 4096
    source, choose = Noise(layout, blocks, 1), random.Random(1)
    whole = {(0, at): at for at in range(blocks)}
    errands = [
        Errand(choose.randbytes(16), Prompt("s", choose.randbytes(32), blocks), (0,), blocks)
        for _ in range(100)
    ]
    uri = f"auto://{tmp_path}/run/ship"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with sending(tmp_path, layout, source.pages, uri) as shipper:
        credentials = load_or_create(tmp_path / "state")
        for errand in errands:
            shipper.open(errand.transfer, errand.prompt, time.monotonic() + 600)
            shipper.supply(errand.transfer, whole)
        options = SocketOptions(send_queue=1000, receive_queue=32, heartbeats=False)
        control = uri.replace("auto", "zmq+ipc")
        dealer = dial(context, control, "decode", "prefill", credentials, options)
        assert dealer.poll(20_000, zmq.POLLOUT)
        for errand in errands:
            dealer.send(encode(errand.ready(layout, credentials.transport_key(), "pages")))
        try:
            assert shipper.take_settled(3.0) == []  # all are still wanted, and still held
        finally:
            context.destroy(linger=0)


class NotInHostMemory:
    """What device pages are to a transport without a GPU here."""

    def __init__(self, pages: Any) -> None:
        self.layers, self.blocks = pages.layers, pages.blocks
        self.page_bytes, self.block_bytes = pages.page_bytes, pages.block_bytes
        self.gather, self.scatter, self.fence = pages.gather, pages.scatter, pages.fence


@pytest.mark.parametrize("carriage", ["pages", "bulk", "lane"])
def test_what_was_not_offered_is_refused(tmp_path: Path, carriage: Carriage) -> None:
    source = NotInHostMemory(Noise(SMALL, 8, 1).pages)
    errand = Errands(random.Random(1), 8, 8).make(2, (0,), 2)
    uri = f"zmq+ipc://{tmp_path}/run/ship"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with sending(tmp_path, SMALL, cast("KVPages", source), uri) as shipper:
        credentials = load_or_create(tmp_path / "state")
        shipper.open(errand.transfer, errand.prompt, time.monotonic() + 600)
        shipper.supply(errand.transfer, errand.source)
        dealer = dial(context, uri, "decode", "prefill", credentials)
        try:
            assert dealer.poll(20_000, zmq.POLLOUT)
            dealer.send(encode(errand.ready(SMALL, credentials.transport_key(), carriage)))
            assert dealer.poll(20_000)
            heard = well_formed(dealer.recv())
            assert isinstance(heard, Failed)
            assert (heard.reason, carriage in heard.detail) == ("protocol", True)
            assert shipper.take_settled() == []
        finally:
            context.destroy(linger=0)
