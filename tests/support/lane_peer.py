"""The receiving end of a lane in a process of its own, and the pipe that is its control channel."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from kvstore.device_digest import block_digests
from kvstore.device_pages import LayerPages
from kvstore.lane import Limits
from kvstore.messages import Blocks, Broken
from kvstore.transport.collective import Arrival, Bed, LaneReceiver, LaneSender
from kvstore.transport.communicator import (
    Communicator,
    ControlStore,
    GlooCommunicator,
    NcclCommunicator,
)

LAYERS, BLOCKS, PAGE = 2, 24, 4096
SLOT_BLOCKS = 4
_TURN_SECONDS = 0.02


def pages(seed: int, device: str = "cpu") -> list[torch.Tensor]:
    """Layers of KV of this seed, the same on every device."""
    random = torch.Generator().manual_seed(seed)
    shape = (BLOCKS, PAGE)
    return [
        torch.randint(-128, 128, shape, dtype=torch.int8, generator=random).to(device)
        for _ in range(LAYERS)
    ]


def over_gloo(limits: Limits) -> Bed:
    """Both ends' way to a communicator on this host."""

    def connect(store: ControlStore, rank: int) -> Communicator:
        return GlooCommunicator(store, rank, "127.0.0.1", limits.build_seconds)

    return Bed(connect, torch.device("cpu"), LAYERS * PAGE, SLOT_BLOCKS, limits)


def over_nccl(limits: Limits) -> Bed:
    """Both ends' way to a communicator on this host's only GPU, told it were two hosts' GPUs."""

    def connect(store: ControlStore, rank: int) -> Communicator:
        os.environ.setdefault("NCCL_HOSTID", f"kvferry-rank-{rank}")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        return NcclCommunicator(store, rank, torch.device("cuda", 0), limits.build_seconds)

    return Bed(connect, torch.device("cuda", 0), LAYERS * PAGE, SLOT_BLOCKS, limits)


@dataclass(frozen=True)
class Placed:
    """The receiver wrote these blocks."""

    transfer: bytes
    first: int
    count: int


@dataclass(frozen=True)
class Failed:
    """These transfers ended with their epoch, on the receiver's side."""

    transfers: tuple[bytes, ...]


@dataclass(frozen=True)
class Show:
    """Send me your pages."""


def receive(pipe: Connection[Any, Any], bed: Bed) -> None:
    """The other process: block ``i`` of a transfer belongs in block ``i`` of its pages."""
    into = pages(seed=0, device=bed.device.type)
    target = LayerPages(into)

    def place(arrival: Arrival) -> None:
        blocks = arrival.shipment.blocks
        assert block_digests(arrival.run, LAYERS * PAGE) == blocks.digests
        count = len(blocks.digests)
        target.scatter_device(range(blocks.first, blocks.first + count), arrival.run)
        finish(bed.device)
        said.append(Placed(blocks.transfer, blocks.first, count))

    said: list[Placed] = []
    end = LaneReceiver(bed, wake=lambda: None)
    while True:
        try:
            while pipe.poll(_TURN_SECONDS):
                message = pipe.recv()
                if isinstance(message, Show):
                    pipe.send([layer.cpu() for layer in into])
                else:
                    end.on_message(message, time.monotonic())
                break
            while arrival := end.receive():
                place(arrival)
                end.taken(arrival.shipment, time.monotonic())
            for answer in end.turn(time.monotonic()):
                pipe.send(answer)
            while said:
                pipe.send(said.pop(0))
            if failed := end.take_failed():
                pipe.send(Failed(tuple(failed)))
        except (EOFError, OSError):
            end.close()
            return


class Peer:
    """The sending end here, the receiving one in a process, and everything it has told.

    ``cut_off``: the control channel carries nothing. ``reasons``: why epochs ended.
    """

    def __init__(self, make_bed: Callable[[Limits], Bed], limits: Limits) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_receive, args=(theirs, make_bed, limits)
        )
        self.process.start()
        theirs.close()
        self._due = threading.Event()
        bed = make_bed(limits)
        self._device = bed.device
        self.end = LaneSender(bed, wake=self._due.set)
        self.placed: list[Placed] = []
        self.failed_here: list[bytes] = []
        self.failed_there: list[bytes] = []
        self.shown: list[list[torch.Tensor]] = []
        self.reasons: list[str] = []
        self.cut_off = False

    def turn(self) -> None:
        """Hear what the peer has to say, and do what is due."""
        while not self.cut_off and self._pipe.poll(0):
            self._hear(self._pipe.recv())
        for message in self.end.turn(time.monotonic()):
            self._note(message)
            if not self.cut_off:
                self._pipe.send(message)
        self.failed_here += self.end.take_failed()
        self._due.wait(_TURN_SECONDS)
        self._due.clear()

    def _hear(self, message: object) -> None:
        match message:
            case Placed():
                self.placed.append(message)
            case Failed():
                self.failed_there += message.transfers
            case list():
                self.shown.append(message)
            case _:
                self._note(message)
                self.end.on_message(message, time.monotonic())  # type: ignore[arg-type]

    def _note(self, message: object) -> None:
        if isinstance(message, Broken):
            self.reasons.append(message.detail)

    def until(self, reached: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Take turns until ``reached``. Raises AssertionError when it does not come."""
        limit = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < limit, f"{what}: not in {seconds:g} s"
            self.turn()

    def slot(self) -> torch.Tensor:
        """The next shipment's slot, as soon as there is one."""
        self.until(lambda: self.end.slot(time.monotonic()) is not None, "a slot")
        slot = self.end.slot(time.monotonic())
        assert slot is not None
        return slot

    def send(self, source: LayerPages, transfer: bytes, first: int, count: int) -> None:
        """Blocks ``first …`` of a transfer, from blocks of the same numbers."""
        run = self.slot()[: count * source.block_bytes]
        source.gather_device(range(first, first + count), run)
        digests = block_digests(run, source.block_bytes)
        self.end.send(Blocks(transfer, "gen", 0, first, digests), time.monotonic())

    def pages_there(self) -> list[torch.Tensor]:
        """What the receiver's pages hold now."""
        self._pipe.send(Show())
        wanted = len(self.shown) + 1
        self.until(lambda: len(self.shown) == wanted, "the other end's pages")
        return self.shown[-1]

    def stall(self) -> None:
        """The other process stops where it is."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """It goes on."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """The other process dies on the spot."""
        self.process.kill()
        self.process.join(10.0)

    def close(self) -> None:
        """End both."""
        self.end.close()
        self._pipe.close()
        if self.process.is_alive():
            self.go_on()
        self.process.join(15.0)
        self.process.kill()


def _receive(pipe: Connection[Any, Any], make_bed: Callable[[Limits], Bed], limits: Limits) -> None:
    receive(pipe, make_bed(limits))


def finish(device: torch.device) -> None:
    """Wait until the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
