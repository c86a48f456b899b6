"""Our own transports: a shipper beside the sender's pages, a fetcher beside the receiver's.

What an engine's connector does around them is done here: a transfer is reserved and announced when
a case is armed, its pages are supplied at once when it is moved.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace

from bench.transport.case import BLOCK_BYTES, Case
from bench.transport.contender import Kvferry
from bench.transport.ends.end import MOVE_SECONDS, Bystander, Room, TransportFailed
from bench.transport.frames import Moved
from kvstore.cluster import Ship
from kvstore.credentials import load_or_create
from kvstore.layout import KVLayout
from kvstore.messages import PROTOCOL_VERSION, Ready
from kvstore.pages import KVPages, open_pages
from kvstore.receiving import Reservation
from kvstore.transfer import Prompt, ready_mac
from kvstore.transport.fetcher import Fetch
from kvstore.transport.opening import Setting, open_fetcher, open_shipper

_GENERATION = "bench"
_WAIT_SECONDS = 1.0
_LAYOUT = KVLayout(
    model="bench",
    engine="bench",
    dtype="uint8",
    kv_dtype="auto",
    order="LBHNC",
    isa="any",
    block_size=1,
    layers=1,
    page_bytes=BLOCK_BYTES,
    rank=0,
    ranks=1,
)


@dataclass(frozen=True)
class _Transfer:
    """One of a case's transfers, with this side's pages in the order of positions."""

    name: bytes
    prompt: Prompt
    pages: tuple[int, ...]


class KvferrySender(Bystander):
    """Listens. Pages are supplied all at once, as after a prompt that was computed in one go."""

    def __init__(self, room: Room, contender: Kvferry) -> None:
        self._held = len(room.pages)
        setting = _setting(room, contender)
        uri = _uri(room, contender)
        self._shipper = open_shipper(uri, _pages(room), _LAYOUT, _GENERATION, setting)
        self._shipper.start()
        self.offer = self._shipper.uri
        self._armed: list[tuple[bytes, dict[tuple[int, int], int]]] = []
        self._number = 0

    def arm(self, case: Case) -> None:
        """See End."""
        self._shipper.take_settled()
        self._number += 1
        lease = time.monotonic() + MOVE_SECONDS
        self._armed = []
        for one in _transfers(case, case.pages("sender", self._held), self._number):
            self._shipper.open(one.name, one.prompt, lease)
            self._armed.append((one.name, {(0, at): page for at, page in enumerate(one.pages)}))

    def move(self, case: Case) -> Moved:
        """See End."""
        began = time.monotonic()
        for transfer, pages in self._armed:
            self._shipper.supply(transfer, pages)
        return Moved(began=began)

    def close(self) -> None:
        """See End."""
        self._shipper.stop()


class KvferryReceiver(Bystander):
    """Dials. A transfer is usable when it has ended without a reason."""

    def __init__(self, room: Room, contender: Kvferry) -> None:
        self._held = len(room.pages)
        setting = _setting(room, contender)
        self._key = setting.credentials.transport_key()
        self._fetcher = open_fetcher(_pages(room), _LAYOUT, setting)
        self._fetcher.start()
        self._peer = ""
        self._number = 0

    def meet(self, offer: str) -> None:
        """See End."""
        self._peer = offer

    def arm(self, case: Case) -> None:
        """See End."""
        self._number += 1
        for one in _transfers(case, case.pages("receiver", self._held), self._number):
            deadline = time.monotonic() + MOVE_SECONDS
            reservation = Reservation(
                one.name, self._peer, _GENERATION, (0,), (one.pages,), deadline
            )
            self._fetcher.fetch(Fetch(reservation, _ready(one, self._key)))

    def move(self, case: Case) -> Moved:
        """See End."""
        left, deadline = case.transfers, time.monotonic() + MOVE_SECONDS
        while left and time.monotonic() < deadline:
            for end in self._fetcher.take_ended(_WAIT_SECONDS):
                if end.reason is not None:
                    raise TransportFailed(f"{case.label}: {end.reason}: {end.detail}")
                left -= 1
        ended = time.monotonic()
        if left:
            raise TransportFailed(f"{case.label}: {left} transfers did not end")
        return Moved(ended=ended)

    def close(self) -> None:
        """See End."""
        self._fetcher.stop()


def _uri(room: Room, contender: Kvferry) -> str:
    name = contender.name.replace(", ", "-").replace("+", "-")
    where = "127.0.0.1:0" if contender.scheme == "zmq+tcp" else str(room.folder / name)
    return f"{contender.scheme}://{where}"


def ship_of(contender: Kvferry) -> Ship:
    """What an operator would set for it."""
    return Ship(
        bulk="encrypted" if contender.curve else "authenticated",
        digest="xxh3-128" if contender.digests else "none",
    )


def _setting(room: Room, contender: Kvferry) -> Setting:
    credentials = load_or_create(room.folder / "state")
    return Setting(ship_of(contender), credentials, time.monotonic)


def _pages(room: Room) -> KVPages:
    return open_pages([torch.from_numpy(room.pages).view(torch.int8)])


def _transfers(case: Case, pages: Sequence[int], number: int) -> list[_Transfer]:
    """The same on both sides for the same ``number``, but for the pages."""
    found = []
    for index in range(case.transfers):
        digest = hashlib.sha256(f"{number}/{index}".encode()).digest()
        share = tuple(pages[case.share(index)])
        found.append(_Transfer(digest[:16], Prompt("bench", digest, len(share)), share))
    return found


def _ready(transfer: _Transfer, key: bytes) -> Ready:
    blocks = transfer.prompt.blocks
    unsigned = Ready(
        version=PROTOCOL_VERSION,
        transfer=transfer.name,
        sender_generation=_GENERATION,
        receiver="bench",
        receiver_generation=_GENERATION,
        fingerprint=_LAYOUT.fingerprint,
        layout=_LAYOUT.summary,
        first=(0,),
        stop=blocks,
        blocks=blocks,
        carriage="frames",
        ttl_ms=round(MOVE_SECONDS * 1000),
        mac=bytes(32),
    )
    return replace(unsigned, mac=ready_mac(key, unsigned, transfer.prompt))
