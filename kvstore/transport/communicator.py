"""A two-rank communicator through torch.distributed: NCCL between GPUs, gloo between CPUs.

The ranks find each other through :class:`ControlStore`, whose entries travel as messages of our
control channel: no rendezvous server, and no port of its own. The communicators' data connections
are the libraries' own, on ports they choose. **They authenticate nobody and encrypt nothing**: only
a network that belongs to the cluster may carry them (``NCCL_SOCKET_IFNAME`` names it for NCCL).

A communicator is used by one thread; only ``abort`` may be called from others.
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed

from kvstore.errors import CommunicatorLost

MOST_ENTRIES = 64
LONGEST_ENTRY = 64 << 10
_POLL_SECONDS = 50e-6


class Pending(Protocol):
    """A run of bytes that is being sent or received."""

    def wait(self, until: float) -> None:
        """Until the run may be reused or read. Raises CommunicatorLost at monotonic ``until``."""


class Communicator(Protocol):
    """Moves contiguous int8 runs, in the order of the calls. Raises CommunicatorLost.

    A run to be sent is written before the call; a received one may be read, by any stream, once
    its ``wait`` has returned.
    """

    def send(self, run: torch.Tensor) -> Pending: ...

    def receive(self, run: torch.Tensor) -> Pending: ...

    def abort(self) -> None:
        """From any thread: end it. A wait under way ends, at the latest when its time is over."""


class ControlStore(torch.distributed.Store):  # type: ignore[misc]
    """The key-value store in which two ranks leave what the other needs to connect.

    ``post`` sends an entry to the other rank; ``enter`` takes one that came from there. Bounded by
    ``MOST_ENTRIES`` of ``LONGEST_ENTRY`` bytes; ``get`` and ``wait`` by ``seconds``.
    """

    def __init__(self, post: Callable[[str, bytes], None], seconds: float) -> None:
        super().__init__()
        self._post = post
        self._seconds = seconds
        self._entries: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._closed = False

    def close(self) -> None:
        """Nobody connects any more: whoever waits is told at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def enter(self, key: str, value: bytes) -> None:
        """An entry of the other rank. One beyond the bounds is dropped: the build then fails."""
        with self._changed:
            if len(self._entries) < MOST_ENTRIES and len(value) <= LONGEST_ENTRY:
                self._entries[key] = value
                self._changed.notify_all()

    def set(self, key: str, value: bytes) -> None:
        """Leave an entry for both."""
        self.enter(key, bytes(value))
        self._post(key, bytes(value))

    def get(self, key: str) -> bytes:
        """The entry, as soon as it is there. Raises CommunicatorLost when it does not come."""
        self.wait([key])
        return self._entries[key]

    def wait(self, keys: Sequence[str], timeout: datetime.timedelta | None = None) -> None:
        """Until all entries are there. Raises CommunicatorLost when they do not come."""
        seconds = self._seconds if timeout is None else timeout.total_seconds()
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self.check(keys), min(seconds, self._seconds)
            )
            if not self.check(keys):
                raise CommunicatorLost("the other end does not say how to reach it")

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all entries are there."""
        return all(key in self._entries for key in keys)


class GlooCommunicator:
    """Between two processes' host memory, over TCP. What tests drive the lanes with.

    ``address``: of this host, to listen on. Raises CommunicatorLost.
    """

    def __init__(self, store: ControlStore, rank: int, address: str, seconds: float) -> None:
        gloo = torch.distributed.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=address)]
        options._timeout = datetime.timedelta(seconds=seconds)
        self._other = 1 - rank
        try:
            self._group = gloo(store, rank, 2, options)
        except RuntimeError as error:
            raise CommunicatorLost(f"gloo: {error}") from None

    def send(self, run: torch.Tensor) -> Pending:
        """See Communicator."""
        return _GlooPending(_posted(self._group.send, run, self._other))

    def receive(self, run: torch.Tensor) -> Pending:
        """See Communicator."""
        return _GlooPending(_posted(self._group.recv, run, self._other))

    def abort(self) -> None:
        """See Communicator. Gloo cannot be interrupted: its waits end when their time is over."""


class NcclCommunicator:
    """Between two GPUs, on a stream of its own. Raises CommunicatorLost.

    ``device``: this rank's. NCCL refuses two ranks on one. It cannot be interrupted while it
    connects: with a peer that stops right then, the thread lingers until NCCL itself gives up.
    """

    def __init__(
        self, store: ControlStore, rank: int, device: torch.device, seconds: float
    ) -> None:
        _leave_the_process_alive()
        torch.cuda.set_device(device)
        self._stream = torch.cuda.Stream(device)
        nccl = torch.distributed.ProcessGroupNCCL
        self._other = 1 - rank
        try:
            self._group = nccl(store, rank, 2, nccl.Options())
        except RuntimeError as error:
            raise CommunicatorLost(f"NCCL: {error}") from None
        # The first bytes make NCCL connect, which is no shipment's business.
        first = torch.zeros(8, dtype=torch.int8, device=device)
        move = self.send if rank == 0 else self.receive
        move(first).wait(time.monotonic() + seconds)

    def send(self, run: torch.Tensor) -> Pending:
        """See Communicator."""
        with torch.cuda.stream(self._stream):
            return _NcclPending(_posted(self._group.send, run, self._other))

    def receive(self, run: torch.Tensor) -> Pending:
        """See Communicator."""
        with torch.cuda.stream(self._stream):
            return _NcclPending(_posted(self._group.recv, run, self._other))

    def abort(self) -> None:
        """See Communicator. Takes NCCL's kernels off the device."""
        self._group.abort()


def _leave_the_process_alive() -> None:
    """By default torch ends the process when a communicator fails; a lane builds another one.

    Read when a communicator is made; what an operator has set is left as it is.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")


def _posted(call: Callable[..., Any], run: torch.Tensor, other: int) -> Any:  # noqa: ANN401 - torch's
    try:  # the same tag always: what is sent is received in order
        return call([run], other, 0)
    except RuntimeError as error:
        raise CommunicatorLost(str(error)) from None


class _GlooPending:
    def __init__(self, work: Any) -> None:  # noqa: ANN401 - torch's Work
        self._work = work

    def wait(self, until: float) -> None:
        # gloo takes a timeout of zero for none at all.
        left = max(0.001, until - time.monotonic())
        try:
            self._work.wait(datetime.timedelta(seconds=left))
        except RuntimeError as error:
            raise CommunicatorLost(f"gloo: {error}") from None


class _NcclPending:
    def __init__(self, work: Any) -> None:  # noqa: ANN401 - torch's Work
        self._work = work

    def wait(self, until: float) -> None:
        # NCCL's own wait holds up only the stream, and has no end of its own.
        while not self._work.is_completed():
            if time.monotonic() >= until:
                raise CommunicatorLost("NCCL: nothing moved in time")
            time.sleep(_POLL_SECONDS)
        try:
            self._work.wait()
        except RuntimeError as error:
            raise CommunicatorLost(f"NCCL: {error}") from None
