"""Mooncake's transfer engine over TCP: the sender writes into the receiver's registered memory."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

from mooncake.engine import TransferEngine

from bench.transport.case import BLOCK_BYTES, Case
from bench.transport.ends.end import Bystander, Room, TransportFailed
from bench.transport.frames import Moved

PACKAGE = "mooncake-transfer-engine-non-cuda"
_HOST = "127.0.0.1"
_BATCH = 1024
"""Pages of one call: with 4,096 its queue is full and the call fails."""


class MooncakeReceiver(Bystander):
    """Registers its pages and offers where they are; the sender tells when they are full."""

    def __init__(self, room: Room) -> None:
        self._engine = _engine(room)
        self.offer = f"{_HOST}:{self._engine.get_rpc_port()} {room.pages.ctypes.data}"


class MooncakeSender(Bystander):
    """Writes one piece where pages are contiguous, else batches of pages, one after the other."""

    def __init__(self, room: Room) -> None:
        self._engine = _engine(room)
        self._pages = room.pages
        self._target, self._address = "", 0

    def meet(self, offer: str) -> None:
        """See End."""
        target, _, address = offer.partition(" ")
        self._target, self._address = target, int(address)

    def move(self, case: Case) -> Moved:
        """See End."""
        held, source = len(self._pages), self._pages.ctypes.data
        if case.order == "contiguous":
            began = time.monotonic()
            failed = self._engine.transfer_sync_write(
                self._target, source, self._address, case.size
            )
        else:
            here = [source + page * BLOCK_BYTES for page in case.pages("sender", held)]
            there = [self._address + page * BLOCK_BYTES for page in case.pages("receiver", held)]
            began = time.monotonic()
            failed = any(
                self._write(here[at : at + _BATCH], there[at : at + _BATCH])
                for at in range(0, case.blocks, _BATCH)
            )
        ended = time.monotonic()
        if failed:
            raise TransportFailed(f"Mooncake could not write {case.label}")
        return Moved(began, ended)

    def _write(self, here: list[int], there: list[int]) -> int:
        lengths = [BLOCK_BYTES] * len(here)
        failed: int = self._engine.batch_transfer_sync_write(self._target, here, there, lengths)
        return failed


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version(PACKAGE)


def _engine(room: Room) -> Any:  # noqa: ANN401 - an extension module without types
    engine = TransferEngine()
    if engine.initialize(_HOST, "P2PHANDSHAKE", "tcp", ""):
        raise TransportFailed("Mooncake's engine did not start")
    if engine.register_memory(room.pages.ctypes.data, room.pages.nbytes):
        raise TransportFailed(f"Mooncake did not register {room.pages.nbytes} bytes")
    return engine
