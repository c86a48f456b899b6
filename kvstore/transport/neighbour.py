"""Pages of another process on this host, read straight from its memory.

One copy, made by the kernel (process_vm_readv(2)), takes a block from the sender's pages to the
receiver's; no memory is shared and none is left behind. The kernel allows it between processes of
one user; where Yama restricts that further (``ptrace_scope`` 1, as on many desktops) the process
that is read must say so, which :func:`allow_reading` does. In separate containers it fails, and
the receiver, which finds out by reading a probe, asks for frames instead.

Measured on two virtual EPYC cores: the copy alone reaches 0.7 to 0.95 of memcpy, whole transfers
half of it. A shared arena with a copy in and a copy out reached 0.3, since lines that one core has
just written come slowly to the other, and pages mapped from another process 0.3 of numpy's gather
where they are small and scattered, for want of TLB entries.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvstore.errors import PeerGone
from kvstore.messages import PROTOCOL_VERSION, Welcome
from kvstore.pages import HostPages, KVPages, Vector, vector_of

_PR_SET_PTRACER = 0x59616D61
_ANYONE = ctypes.c_ulong(-1)
_IOV_MAX, _CALL_BYTES = 1024, 1 << 30
"""Pieces and bytes that one call takes (Linux; it would take one byte short of 2 GiB)."""

_PART_BYTES = 4 << 20
"""What is read and then checked at a time: shorter ones cost more than they gain."""

_TWO_THREADS_PARTS = 2
"""What is worth waking another thread for."""

_libc = ctypes.CDLL(None, use_errno=True)
_read = _libc.process_vm_readv
_read.restype = ctypes.c_ssize_t
_read.argtypes = (
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
)


class Readable:
    """This process's pages, as another may read them. Keep it as long as they may be read."""

    def __init__(self, pages: HostPages) -> None:
        self._probe = np.frombuffer(secrets.token_bytes(16), dtype=np.uint8)
        shape = pages.memory
        self.message = Welcome(
            version=PROTOCOL_VERSION,
            pid=os.getpid(),
            base=shape.base,
            layer_step=shape.layer_step,
            block_step=shape.block_step,
            layers=pages.layers,
            blocks=pages.blocks,
            page_bytes=pages.page_bytes,
            probe=self._probe.tobytes(),
            probe_at=self._probe.ctypes.data,
        )
        allow_reading()


def allow_reading() -> None:
    """Let other processes of this user read this one's memory where Yama would forbid it.

    They hold the same keys and could ask for the same blocks. Has no effect without Yama.
    """
    _libc.prctl(_PR_SET_PTRACER, _ANYONE, 0, 0, 0)


Check = Callable[[range], int | None]
"""Of these indices one whose block is not, where it has been read to, what it must be."""


class Neighbour:
    """A sender's pages in its process, read into ours, by ``second`` too where it is much.

    Raises PeerGone when they cannot be read from here.
    """

    def __init__(self, memory: Welcome, pages: KVPages, second: ThreadPoolExecutor) -> None:
        if memory.pid == 0 or not isinstance(pages, HostPages):
            raise PeerGone("not all pages are in this host's memory")
        if (memory.layers, memory.page_bytes) != (pages.layers, pages.page_bytes):
            raise PeerGone("its pages have another size")
        self._memory = memory
        self._pages = pages
        self._second = second
        steps = np.arange(memory.layers, dtype=np.uint64) * np.uint64(memory.layer_step)
        self._layers = np.uint64(memory.base) + steps
        self._part_blocks = max(1, _PART_BYTES // pages.block_bytes)
        probe = np.zeros(16, dtype=np.uint8)
        self._copy(_piece(memory.probe_at, probe.nbytes), _piece(probe.ctypes.data, probe.nbytes))
        if probe.tobytes() != memory.probe:
            raise PeerGone(f"process {memory.pid} is another one here: separate containers?")

    def holds(self, blocks: Sequence[int]) -> bool:
        """Whether these are blocks of the sender's."""
        return max(blocks) < self._memory.blocks

    def read(self, blocks: Sequence[int], into: Sequence[int], check: Check) -> int | None:
        """Copy the sender's ``blocks`` into ours, part by part, each checked when it is there.

        The index of one that is not what it must be, if any is. Raises PeerGone when its process
        is gone.
        """
        there = vector_of(blocks, self._memory.block_step, self._layers, self._memory.page_bytes)
        here = self._pages.vector(into)
        starts = range(0, len(blocks), self._part_blocks)
        parts = deque(range(len(blocks))[start : start + self._part_blocks] for start in starts)
        copied: deque[range] = deque()

        def copy() -> bool:
            """One part, if there is one left: whichever thread comes to it."""
            try:
                part = parts.popleft()
            except IndexError:
                return False
            rows = slice(part.start, part.stop)
            self._copy(there[rows], here[rows])
            copied.append(part)
            return True

        def copy_all() -> None:
            while copy():
                pass

        second = self._second.submit(copy_all) if len(parts) >= _TWO_THREADS_PARTS else None
        wrong = None
        try:
            while wrong is None and copy():
                wrong = _first_wrong(copied, check)
        finally:
            parts.clear()
            if second is not None and not second.cancel():
                second.result()
        return _first_wrong(copied, check) if wrong is None else wrong

    def _copy(self, remote: Vector, local: Vector) -> None:
        """As many pieces a call as the kernel takes."""
        remote, local = remote.reshape(-1, 2), local.reshape(-1, 2)
        size = int(local[0, 1])
        most = max(1, min(_IOV_MAX, _CALL_BYTES // size))
        for start in range(0, len(remote), most):
            count = min(most, len(remote) - start)
            copied = _read(
                *(self._memory.pid, local[start:].ctypes.data, count),
                *(remote[start:].ctypes.data, count, 0),
            )
            if copied != count * size:
                reason = os.strerror(ctypes.get_errno()) if copied < 0 else "only in part"
                raise PeerGone(f"cannot read the memory of process {self._memory.pid}: {reason}")


def _piece(at: int, size: int) -> Vector:
    return np.array([[at, size]], dtype=np.uint64)


def _first_wrong(copied: deque[range], check: Check) -> int | None:
    """Takes what has been copied so far."""
    wrong = None
    while copied and wrong is None:
        wrong = check(copied.popleft())
    return wrong
