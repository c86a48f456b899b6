"""Child processes of a benchmark: started apart, watched until ready, stopped to the last one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.errors import BenchError

STOP_SECONDS = 20.0
_POLL_SECONDS = 0.25

# Bound before the program is loaded, so that every thread and process it starts is bound too.
_BIND = (
    "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class StartFailed(BenchError):
    """A system did not come up; the message ends with what it last wrote."""


@dataclass(frozen=True)
class Child:
    """A started program and every process below it. ``log`` holds all it writes."""

    name: str
    running: subprocess.Popen[bytes]
    log: Path

    def family(self) -> list[psutil.Process]:
        """The process and its descendants that are alive now."""
        try:
            parent = psutil.Process(self.running.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def bound(core: int, command: Sequence[str]) -> list[str]:
    """``command`` (its program by path), to run on ``core`` alone."""
    return [sys.executable, "-c", _BIND, str(core), *command]


def launch(name: str, command: Sequence[str], environ: Mapping[str, str], logs: Path) -> Child:
    """Start ``command`` in a process group of its own, so that a Ctrl-C here does not reach it.

    Not in a session of its own: where the kernel shares out CPUs by session, several programs that
    spin on one core would be dealt with otherwise than when started from one shell.
    """
    log = logs / f"{name}-{time.strftime('%H%M%S')}.log"
    with log.open("ab") as file:
        running = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    return Child(name, running, log)


async def until_ready(child: Child, ready: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Wait until ``ready`` says so. Raises StartFailed if it ends or takes longer."""
    deadline = time.monotonic() + seconds
    while not await ready():
        if (code := child.running.poll()) is not None:
            raise StartFailed(f"{child.name} ended with {code}:\n{child.tail()}")
        if time.monotonic() > deadline:
            raise StartFailed(f"{child.name} is not ready after {seconds:.0f} s:\n{child.tail()}")
        await asyncio.sleep(_POLL_SECONDS)


async def stop(child: Child, seconds: float = STOP_SECONDS) -> None:
    """End a child and all below it: SIGTERM, then SIGKILL for whatever is left at the deadline.

    Cancelled, it kills at once: an impatient second Ctrl-C leaves nothing behind either.
    """
    family = child.family()
    if child.running.poll() is None:
        child.running.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and any(alive(member) for member in family):
            child.running.poll()
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        for member in family:
            if alive(member):
                kill(member)
        # Also those whose parent was gone before it could be asked for its children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.running.pid, signal.SIGKILL)
        child.running.wait()


def alive(member: psutil.Process) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(member: psutil.Process) -> None:
    """SIGKILL; nothing happens to one that is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        member.kill()


def label(member: psutil.Process) -> str:
    """A short title: a renamed process's own (``VLLM::Worker``), else its module or program.

    Results keep it, so of a path only the last part is told.
    """
    words = [word for part in member.cmdline() for word in part.split()] or [member.name()]
    if words[0].startswith("VLLM::"):
        return words[0]
    told = words[words.index("-m") + 1 :][:3] if "-m" in words[:-1] else words[:2]
    return " ".join(Path(word).name for word in told)


def computed(children: Sequence[Child]) -> dict[str, float]:
    """CPU seconds so far of every process of ``children``, by child, title and pid."""
    found: dict[str, float] = {}
    for child in children:
        for member in child.family():
            try:
                times = member.cpu_times()
                found[f"{child.name}/{label(member)}/{member.pid}"] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
    return found


def group(member: psutil.Process) -> int | None:
    """Its process group; None if it is gone."""
    try:
        return os.getpgid(member.pid)
    except ProcessLookupError:
        return None


def resident(children: Sequence[Child]) -> dict[str, int]:
    """Resident bytes of every process of ``children``, by child, title and pid."""
    found: dict[str, int] = {}
    for child in children:
        for member in child.family():
            try:
                found[f"{child.name}/{label(member)}/{member.pid}"] = member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    return found
