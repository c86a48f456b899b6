"""Sending ends that lie to those who dial them: about memory, about blocks, and without end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from msgspec.structs import replace

from kvstore.cluster import Ship
from kvstore.codec import decode, encode
from kvstore.credentials import PeerRole
from kvstore.layout import KVLayout
from kvstore.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Blocks,
    Cancel,
    Hello,
    Ready,
    Received,
    Welcome,
)
from kvstore.transport import zeromq_receiving
from kvstore.transport.digests import Xxh3
from kvstore.transport.opening import Setting, open_fetcher
from kvstore.transport.sockets import SocketOptions, listen
from kvstore.transport.zeromq_receiving import ZmqReceivingEnd
from tests.support import transport_peer
from tests.support.transfers import GENERATION, Errand, Noise, layout_of
from tests.support.transport_pairs import until
from tests.support.transport_peer import Peer, fetch, setting_at, shared_errands

LAYOUT = layout_of(2, 4096, 1)
BLOCKS = 256
LONGEST_MIB = 2
"""A frame that a receiver takes, with room to spare."""

NO_PROCESS = 1 << 22
"""More than Linux gives out as a process's number."""


class Liar:
    """A listener with a prefill worker's key that answers by hand."""

    def __init__(self, setting: Setting, uri: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        options = SocketOptions(send_queue=8)
        decoders: frozenset[PeerRole] = frozenset({"decode"})
        self.router = listen(self.context, uri, "prefill", decoders, setting.credentials, options)
        self.router.sndtimeo = 20_000

    def hears(self, kind: type[AnyMessage]) -> tuple[bytes, Any]:
        """The next message of that kind, and from whom."""
        while True:
            assert self.router.poll(20_000)
            peer, frame = self.router.recv_multipart()
            message = decode(frame)
            if isinstance(message, kind):
                return peer, message

    def says(self, peer: bytes, message: AnyMessage, *frames: bytes) -> None:
        self.router.send_multipart([peer, encode(message), *frames])


@dataclass
class Scene:
    """A liar, somebody who dials it, and that one's pages."""

    liar: Liar
    setting: Setting
    folder: Path

    def uri(self, scheme: str) -> str:
        return f"{scheme}://{self.folder}/liar"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    setting = setting_at(tmp_path / "state")
    liar = Liar(setting, f"zmq+ipc://{folder}/liar")
    yield Scene(liar, setting, folder)
    liar.context.destroy(linger=0)


class Memory:
    """What a truthful welcome would say of pages in this process."""

    def __init__(self, layout: KVLayout = LAYOUT) -> None:
        self.pages = Noise(layout, BLOCKS, 1)
        self.probe = np.frombuffer(b"p" * 16, dtype=np.uint8)
        shape = self.pages.pages.memory
        self.welcome = Welcome(
            version=PROTOCOL_VERSION,
            pid=os.getpid(),
            base=shape.base,
            layer_step=shape.layer_step,
            block_step=shape.block_step,
            layers=layout.layers,
            blocks=BLOCKS,
            page_bytes=layout.page_bytes,
            probe=self.probe.tobytes(),
            probe_at=self.probe.ctypes.data,
        )


AT_ONCE: dict[str, dict[str, Any]] = {
    "no such process": {"pid": NO_PROCESS},
    "another process": {"pid": os.getppid()},
    "no memory there": {"probe_at": 8},
    "another probe": {"probe": b"q" * 16},
    "other pages": {"page_bytes": 640},
    "pages without end": {"layers": 1 << 32},
    "no memory at all": {"pid": 0},
}


@pytest.mark.parametrize("lie", AT_ONCE.values(), ids=AT_ONCE)
def test_memory_that_cannot_be_read_is_refused_or_sent_in_frames(
    scene: Scene, lie: dict[str, Any]
) -> None:
    memory = Memory()
    target = Noise(LAYOUT, BLOCKS, 2)
    before = target.bytes.copy()
    fetcher = open_fetcher(target.pages, LAYOUT, scene.setting)
    fetcher.start()
    try:
        insisting, flexible = shared_errands()[:2]
        fetch(fetcher, scene.setting, scene.uri("shm"), insisting, GENERATION)
        peer, _ = scene.liar.hears(Hello)
        scene.liar.says(peer, replace(memory.welcome, **lie))
        (end,) = until(fetcher.take_ended)
        assert end.reason == "peer-lost"
        assert "cannot be read" in end.detail
        fetch(fetcher, scene.setting, scene.uri("auto"), flexible, GENERATION)
        peer, _ = scene.liar.hears(Hello)
        scene.liar.says(peer, replace(memory.welcome, **lie))
        assert scene.liar.hears(Ready)[1].carriage == "frames"
        assert (target.bytes == before).all()
    finally:
        fetcher.stop()


LATER: dict[str, dict[str, Any]] = {
    "nothing there": {"base": 8},
    "beyond the address space": {"layer_step": 1 << 56, "base": 1 << 56},
    "blocks that do not exist": {"block_step": 1 << 55},
    "something else there": {"layer_step": 0},
}


@pytest.mark.parametrize("lie", LATER.values(), ids=LATER)
def test_blocks_that_are_not_where_they_are_said_to_be_leave_nothing_behind(
    scene: Scene, lie: dict[str, Any]
) -> None:
    memory, (errand, *_) = Memory(), shared_errands()
    target = Noise(LAYOUT, BLOCKS, 2)
    before = target.bytes.copy()
    fetcher = open_fetcher(target.pages, LAYOUT, scene.setting)
    fetcher.start()
    try:
        fetch(fetcher, scene.setting, scene.uri("shm"), errand, GENERATION)
        peer, _ = scene.liar.hears(Hello)
        scene.liar.says(peer, replace(memory.welcome, **lie))
        peer, _ = scene.liar.hears(Ready)
        scene.liar.says(peer, told(memory, errand))
        (end,) = until(fetcher.take_ended)
        assert end.reason in {"peer-lost", "digest-mismatch"}
        assert end.through == 0
        mine = list(errand.target.values())
        others = [block for block in range(BLOCKS) if block not in mine]
        assert (target.bytes[:, others] == before[:, others]).all()
        assert all(target.bytes[:, block].max() == 0 for block in mine), "wiped"
    finally:
        fetcher.stop()


def told(memory: Memory, errand: Errand) -> Blocks:
    """What a sender says of an errand's first group, truthfully."""
    ids = tuple(errand.source.values())
    digests = Xxh3().of((errand.transfer, 0, 0), map(memory.pages.pages.pieces, ids))
    return Blocks(errand.transfer, GENERATION, 0, 0, digests, ids)


def test_blocks_beyond_the_reservation_end_the_transfer(scene: Scene) -> None:
    """In a frame as in pages: nothing is written for which no memory was reserved."""
    memory, (errand, *_) = Memory(), shared_errands()
    target = Noise(LAYOUT, BLOCKS, 2)
    before = target.bytes.copy()
    fetcher = open_fetcher(target.pages, LAYOUT, scene.setting)
    fetcher.start()
    try:
        fetch(fetcher, scene.setting, scene.uri("zmq+ipc"), errand, GENERATION)
        peer, _ = scene.liar.hears(Ready)
        right = replace(told(memory, errand), pages=())
        payload = b"".join(memory.pages.of(block) for block in errand.source.values())
        scene.liar.says(peer, replace(right, digests=right.digests * 2), payload * 2)
        (end,) = until(fetcher.take_ended)
        assert end.reason == "protocol"
        scene.liar.hears(Cancel)
        assert (target.bytes == before).all()
    finally:
        fetcher.stop()


def test_one_senders_flood_keeps_no_other_waiting(scene: Scene) -> None:
    """Messages of both are there; the other's comes up at once, not after the flood."""
    other = Liar(scene.setting, f"zmq+ipc://{scene.folder}/other")
    uris = scene.uri("zmq+ipc"), f"zmq+ipc://{scene.folder}/other"
    target = Noise(LAYOUT, BLOCKS, 2)
    end = ZmqReceivingEnd(target.pages, LAYOUT.fingerprint, Ship(), scene.setting.credentials)
    try:
        stale = Blocks(bytes(16), "old", 0, 0, (bytes(16),))
        for liar, uri, count in ((scene.liar, uris[0], 100), (other, uris[1], 2)):
            until(partial(end.send, uri, Received(bytes(16), 0, 0)))
            peer, _ = liar.hears(Received)
            for _ in range(count):
                liar.says(peer, stale, b"x")
        dealers = [connection.control.dealer for connection in end._peers.values()]
        assert all(dealer.poll(20_000) for dealer in dealers)
        heard = [until(end.receive) for _ in range(102)]
        assert uris[1] in {arrival.peer for arrival in heard[:2] if arrival}
    finally:
        end.close()
        other.context.destroy(linger=0)


def test_a_connection_that_makes_room_for_another_counts_as_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its transfers would wait for their deadlines."""
    monkeypatch.setattr(zeromq_receiving, "PEERS", 1)
    end = ZmqReceivingEnd(
        Noise(LAYOUT, 1, 1).pages, LAYOUT.fingerprint, Ship(), scene.setting.credentials
    )
    try:
        until(partial(end.send, scene.uri("zmq+ipc"), Cancel(bytes(16))))
        assert end.lost() == []
        end.send(f"zmq+ipc://{scene.folder}/other", Cancel(bytes(16)))
        assert end.lost() == [scene.uri("zmq+ipc")]
        assert end.lost() == []
    finally:
        end.close()


def test_a_flood_of_blocks_that_nobody_asked_for(scene: Scene, tmp_path: Path) -> None:
    """It grows a receiver by no more than a queue of the longest frames it takes."""
    peer = Peer("receive", scene.uri("zmq+ipc"), tmp_path / "state")
    try:
        peer.ask_for(0)
        address, asked = scene.liar.hears(Ready)
        base = peer.mib()
        flood = bytes(1 << 20)
        stale = Blocks(bytes(16), GENERATION, 0, 0, (bytes(16),))
        for _ in range(400):
            scene.liar.says(address, stale, flood)
        assert peer.mib() - base < Ship().max_transfers * LONGEST_MIB + 32
        memory, errand = Memory(transport_peer.LAYOUT), shared_errands()[0]
        payload = b"".join(memory.pages.of(block) for block in errand.source.values())
        assert asked.transfer == errand.transfer
        scene.liar.says(address, replace(told(memory, errand), pages=()), payload)
        assert peer.line() == "0 None"
    finally:
        peer.end()
