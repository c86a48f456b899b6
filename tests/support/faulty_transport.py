"""Bad weather around any transport: what an end receives comes late, twice, never or broken.

Both wrappers disturb messages on their way in, after the transport has taken them off the wire, so
they serve whatever carries the bytes. A ``Faults`` names the share of messages that meet with each
mishap; the seed decides which.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from kvstore.codec import encode, well_formed
from kvstore.messages import AnyMessage, Blocks, Cancel, Failed, Ready, Received
from kvstore.pages import HostPages, KVPages
from kvstore.receiving import Placement
from kvstore.transport.cargo import Frame, RemotePages
from kvstore.transport.ends import (
    Cargo,
    FromReceiver,
    FromSender,
    ReceivingEnd,
    SendingEnd,
)
from kvstore.transport.lanes_receiving import Arrived
from kvstore.transport.neighbour import Check, Neighbour

TURN_SECONDS = 0.001
LATEST = 40
"""Turns after which a message that is held back comes at last."""

Arrival = TypeVar("Arrival", FromReceiver, FromSender)


@dataclass(frozen=True)
class Faults:
    """Shares of all messages, from 0 to 1. Delays keep the order, ``reorder`` does not."""

    seed: int = 0
    delay: float = 0.0
    repeat: float = 0.0
    drop: float = 0.0
    reorder: float = 0.0
    truncate: float = 0.0
    flip: float = 0.0


HARMLESS = Faults(delay=0.3, repeat=0.3)
SEVERE = Faults(delay=0.2, repeat=0.2, drop=0.02, reorder=0.05, truncate=0.02, flip=0.05)


class Weather(Generic[Arrival]):
    """Holds back what arrives, by turns of the thread that asks for it."""

    def __init__(
        self, faults: Faults, damage: Callable[[Arrival, random.Random, str], Arrival | None]
    ) -> None:
        self._faults = faults
        self._damage: Callable[[Arrival, random.Random, str], Arrival | None] = damage
        self._rng = random.Random(faults.seed)
        self._held: list[tuple[int, int, Arrival]] = []
        self._turn = self._count = self._latest = 0

    def next(self, take: Callable[[], Arrival | None]) -> Arrival | None:
        """What is due now, after everything that ``take`` gives has met its fate."""
        self._turn += 1
        while arrival := take():
            self._meet(arrival)
        if self._held and self._held[0][0] <= self._turn:
            return heapq.heappop(self._held)[2]
        return None

    def patience(self, seconds: float) -> float:
        """How long the end may wait: not long while anything is held back."""
        return min(seconds, TURN_SECONDS) if self._held else seconds

    def _meet(self, arrival: Arrival) -> None:
        faults, rng = self._faults, self._rng
        if rng.random() < faults.drop:
            _release(arrival)
            return
        for kind, share in (("truncate", faults.truncate), ("flip", faults.flip)):
            if rng.random() < share:
                damaged = self._damage(arrival, rng, kind)
                if damaged is None:
                    _release(arrival)
                    return
                arrival = damaged
        wait = rng.randint(1, 5) if rng.random() < faults.delay else 0
        if rng.random() < faults.reorder:
            self._hold(arrival, self._turn + rng.randint(0, 10))
            return
        self._latest = max(self._latest, self._turn + wait)
        self._hold(arrival, self._latest)
        if rng.random() < faults.repeat:
            self._hold(arrival, self._latest + rng.randint(0, LATEST))

    def _hold(self, arrival: Arrival, turn: int) -> None:
        self._count += 1
        heapq.heappush(self._held, (turn, self._count, arrival))


def _release(arrival: FromReceiver | FromSender) -> None:
    """Nobody else will be done with it."""
    if isinstance(arrival, FromSender) and arrival.cargo is not None:
        arrival.cargo.release()


def _broken(data: bytes, rng: random.Random, kind: str) -> bytes:
    """``data`` cut short, or with one bit flipped."""
    if kind == "truncate":
        return data[: rng.randrange(len(data))]
    bits = int.from_bytes(data, "little") ^ (1 << rng.randrange(len(data) * 8))
    return bits.to_bytes(len(data), "little")


def _broken_message(message: AnyMessage, rng: random.Random, kind: str) -> AnyMessage | None:
    return well_formed(_broken(encode(message), rng, kind))


def _damaged_up(arrival: FromReceiver, rng: random.Random, kind: str) -> FromReceiver | None:
    message = _broken_message(arrival.message, rng, kind)
    if isinstance(message, Ready | Received | Cancel):
        return replace(arrival, message=message)
    return None


def _damaged_down(arrival: FromSender, rng: random.Random, kind: str) -> FromSender | None:
    """The message or what it carries."""
    if arrival.cargo is not None and rng.random() < 0.5:
        return replace(arrival, cargo=_damaged_cargo(arrival.cargo, rng, kind))
    message = _broken_message(arrival.message, rng, kind)
    if not isinstance(message, Blocks | Failed):
        return None
    return replace(arrival, message=message)


def _damaged_cargo(cargo: Cargo, rng: random.Random, kind: str) -> Cargo:
    if isinstance(cargo, Frame):
        return replace(cargo, frame=memoryview(_broken(bytes(cargo.frame), rng, kind)))
    if isinstance(cargo, Arrived):
        broken = _broken(cargo.run.numpy().tobytes(), rng, kind)
        return replace(cargo, run=torch.from_numpy(np.frombuffer(broken, dtype=np.int8).copy()))
    assert isinstance(cargo, RemotePages)
    return _FlawedPages(cargo, rng)


@dataclass(frozen=True)
class _FlawedPages:
    """Blocks that reach us from the sender's pages with one bit flipped."""

    cargo: RemotePages
    rng: random.Random

    @property
    def size(self) -> int:
        return self.cargo.size

    def place(self, pages: KVPages, placement: Placement) -> int | None:
        flawed: Any = _Flawed(self.cargo.neighbour, pages, self.rng)
        return replace(self.cargo, neighbour=flawed).place(pages, placement)

    def release(self) -> None:
        self.cargo.release()


@dataclass(frozen=True)
class _Flawed:
    """The neighbour of ``_FlawedPages``."""

    neighbour: Neighbour
    pages: KVPages
    rng: random.Random

    def read(self, blocks: Sequence[int], into: Sequence[int], check: Check) -> int | None:
        self.neighbour.read(blocks, into, lambda _: None)
        assert isinstance(self.pages, HostPages)
        piece = next(iter(self.pages.pieces(self.rng.choice(into))))
        piece[self.rng.randrange(len(piece))] ^= 1 << self.rng.randrange(8)
        return check(range(len(blocks)))


class FaultySendingEnd:
    """A sending end to which receivers' messages find their way badly."""

    def __init__(self, end: SendingEnd, faults: Faults) -> None:
        self._end = end
        self._weather = Weather(faults, _damaged_up)
        self.reply, self.room, self.load, self.post = end.reply, end.room, end.load, end.post
        self.lost, self.wake, self.close = end.lost, end.wake, end.close

    @property
    def uri(self) -> str:
        return self._end.uri

    def receive(self) -> FromReceiver | None:
        return self._weather.next(self._end.receive)

    def wait(self, seconds: float) -> None:
        self._end.wait(self._weather.patience(seconds))


class FaultyReceivingEnd:
    """A receiving end to which senders' messages, and the bytes with them, find their way badly."""

    def __init__(self, end: ReceivingEnd, faults: Faults) -> None:
        self._end = end
        self._weather = Weather(faults, _damaged_down)
        self.carriage, self.send, self.lost = end.carriage, end.send, end.lost
        self.wake, self.close = end.wake, end.close

    def receive(self) -> FromSender | None:
        return self._weather.next(self._end.receive)

    def wait(self, seconds: float) -> None:
        self._end.wait(self._weather.patience(seconds))
