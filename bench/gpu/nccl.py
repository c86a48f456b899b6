"""NCCL between two processes, on one card that passes for two hosts' cards.

Then NCCL takes its network path, through host memory and a socket: the figure says that our use of
it works, and is no measure of two cards.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing

from bench.gpu.figures import Figure, figure, speeds
from bench.gpu.paged import awaited
from kvstore.errors import TransferError
from kvstore.transport.communicator import Communicator, ControlStore, NcclCommunicator

NAME = "nccl_one_card_vs_device_copy"
_RUNS = 8
_BUILD_SECONDS = 60.0
_MOVE_SECONDS = 30.0


def figures(size: int, rounds: int) -> Iterator[Figure]:
    """One figure for ``size`` bytes in eight runs; why not, where NCCL refuses."""
    context = torch.multiprocessing.get_context("spawn")
    entries, their_entries = context.Pipe()
    orders, their_orders = context.Pipe()
    arguments = (their_entries, their_orders, size // _RUNS)
    receiver = context.Process(target=receive, args=arguments, daemon=True)
    receiver.start()
    their_entries.close()
    their_orders.close()
    try:
        yield _measured(_communicator(entries, rank=0), orders, size // _RUNS, rounds)
    except (TransferError, RuntimeError, OSError, EOFError) as error:
        yield Figure(NAME, None, missing=(str(error) or type(error).__name__).splitlines()[0])
    finally:
        entries.close()
        orders.close()
        receiver.join(10.0)
        receiver.kill()


def receive(entries: Connection[Any, Any], orders: Connection[Any, Any], size: int) -> None:
    """The other process: receives as many runs as it is told to, until the pipe closes."""
    communicator = _communicator(entries, rank=1)
    runs = _runs(size)
    try:
        while True:
            orders.recv()
            _all(communicator.receive, runs)
            orders.send("received")
    except EOFError:
        communicator.abort()


def _communicator(entries: Connection[Any, Any], rank: int) -> Communicator:
    os.environ.setdefault("NCCL_HOSTID", f"kvferry-rank-{rank}")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    store = ControlStore(lambda key, value: entries.send((key, value)), _BUILD_SECONDS)
    threading.Thread(target=_hear, args=(entries, store), daemon=True).start()
    return NcclCommunicator(store, rank, torch.device("cuda", 0), _BUILD_SECONDS)


def _hear(entries: Connection[Any, Any], store: ControlStore) -> None:
    try:
        while True:
            store.enter(*entries.recv())
    except (EOFError, OSError):
        store.close()


def _measured(
    communicator: Communicator, orders: Connection[Any, Any], size: int, rounds: int
) -> Figure:
    runs, again = _runs(size), _runs(size)
    ways: dict[str, Callable[[], None]] = {
        "copy": awaited(partial(torch._foreach_copy_, again, runs)),
        "nccl": partial(_sent, communicator, orders, runs),
    }
    found = speeds(ways, size * _RUNS, rounds)
    communicator.abort()
    return figure(NAME, None, found["nccl"], found["copy"])


def _sent(
    communicator: Communicator, orders: Connection[Any, Any], runs: Sequence[torch.Tensor]
) -> None:
    orders.send("receive")
    _all(communicator.send, runs)
    if not orders.poll(_MOVE_SECONDS):
        raise RuntimeError("the other process received nothing in time")
    orders.recv()


def _all(call: Callable[[torch.Tensor], Any], runs: Sequence[torch.Tensor]) -> None:
    until = time.monotonic() + _MOVE_SECONDS
    for pending in [call(run) for run in runs]:
        pending.wait(until)


def _runs(size: int) -> list[torch.Tensor]:
    return [torch.zeros(size, dtype=torch.int8, device="cuda") for _ in range(_RUNS)]
