"""Stands between a supervisor and one of its children so that nothing outlives either of them.

Run by path, with the interpreter's isolated mode and no third-party import::

    keeper.py GRACE_SECONDS PARENT_PID PROGRAM [ARGUMENT ...]

The keeper leads a process group of its own, adopts whatever its child leaves behind, and ends the
whole group in one of three ways:

- its child has ended: what is left of the group is killed;
- SIGTERM or SIGINT: the child is asked to end and killed after the grace period;
- its parent is gone (killed, even with SIGKILL) or says so: the group is killed at once.

vLLM needs this: its engine core outlives a killed API server, and shared memory outlives both.
Exits with the child's status, or 128 + signal.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
END_NOW = signal.SIGUSR1
"""Also what the kernel sends when the parent is gone."""

_HEARD = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, END_NOW}
_TRACKER_SECONDS = 1.0
_LEFTOVER_SECONDS = 2.0
_SHARED = "/dev/shm/"  # noqa: S108 - where POSIX shared memory is, by definition
_OWNED_BY_OTHERS = f"{_SHARED}lmcache_"
"""The DRAM tier's memory: workers map it too, and its own supervisor removes it."""


def main(argv: list[str]) -> int:
    """Keeps one child; see the module's description."""
    grace, parent, program = float(argv[1]), int(argv[2]), argv[3:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, int(END_NOW), 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        return 128 + END_NOW
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # or ending the group would end whoever started us
    forbid_core_dumps()
    child = os.posix_spawnp(program[0], program, os.environ, setsigmask=())
    return _keep(child, grace)


def forbid_core_dumps() -> None:
    """A core dump of this process or of its children would hold prompts.

    One byte, not none: only that also stops the kernel from piping it to a program (core(5)).
    Where the hard limit is 0 and not ours to raise, that remains; ``kvferry doctor`` says so.

    Processes stay dumpable (prctl(2), PR_SET_DUMPABLE): workers of one host read each other's KV
    with process_vm_readv(2), which the kernel refuses for others; exec would undo it, and a host
    with ``fs.suid_dumpable`` 2 dumps them nevertheless.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _keep(child: int, grace: float) -> int:
    status, kill_at = None, None
    while status is None:
        left = 3600.0 if kill_at is None else max(0.0, kill_at - time.monotonic())
        heard = signal.sigtimedwait(_HEARD, left)
        if heard is not None and heard.si_signo == signal.SIGCHLD:
            status = _reap(child)
        elif heard is not None and heard.si_signo in (signal.SIGTERM, signal.SIGINT):
            kill_at = kill_at or time.monotonic() + grace
            os.kill(child, signal.SIGTERM)
        elif heard is not None or kill_at is not None:
            break
    _end_group()
    if status is None:
        return 128 + signal.SIGKILL
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _reap(child: int) -> int | None:
    """Collects every ended process; the wait status of ``child`` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _end_group() -> None:
    """Kills the group, removes the shared memory it had mapped, and waits until it is gone.

    Python's resource trackers come last: they remove, unasked, what the dead had made.
    """
    own = os.getpgrp()
    shared = segments(own)
    began = time.monotonic()
    while left := members(own):
        waited = time.monotonic() - began
        for pid in left:
            if waited > _TRACKER_SECONDS or not _is_tracker(pid):
                _kill(pid)
        _reap(0)
        if waited > _LEFTOVER_SECONDS:
            break
        time.sleep(0.01)
    remove(shared)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def is_ours(group: int) -> bool:
    """Whether ``group`` is, or was before its keeper died, led by a keeper of ours."""
    try:
        return Path(__file__).name.encode() in Path(f"/proc/{group}/cmdline").read_bytes()
    except FileNotFoundError:
        return bool(members(group))  # its number stays taken while it has members


def segments(group: int) -> set[str]:
    """Paths of the shared memory that lives and dies with process group ``group``.

    Compared by file number: a semaphore's maker has it mapped under another, passing name.
    """
    numbers = {number for pid in members(group) for number in _mapped(pid)}
    shared = {entry.path for entry in os.scandir(_SHARED) if entry.inode() in numbers}
    return {path for path in shared if not path.startswith(_OWNED_BY_OTHERS)}


def remove(shared: set[str]) -> None:
    """Removes segments that nobody is left to remove."""
    for segment in shared:
        Path(segment).unlink(missing_ok=True)


def members(group: int) -> list[int]:
    """Processes of ``group`` without its keeper and without the dead that await collection.

    A line of ``/proc/PID/stat`` is ``pid (name) state ppid pgrp …``; the name may hold anything.
    """
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal() or int(entry.name) == group:
            continue
        try:
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if fields[0] != "Z" and int(fields[2]) == group:
            found.append(int(entry.name))
    return found


def _mapped(pid: int) -> set[int]:
    """File numbers of what ``pid`` has mapped; a line's fifth field, before the path."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in lines if _SHARED in line}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
