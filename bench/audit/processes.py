"""The deployment's processes on this host: what they have open, and which memory they share."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.audit.deployment import Deployment

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where POSIX shared memory is, by definition

_MAPPED_AT = 5
"""The field of a line of /proc/PID/maps in which a path stands."""


class OpenFile(NamedTuple):
    """A regular file that a process has open: ``path`` reads it even where it is ``deleted``."""

    path: str
    name: str
    deleted: bool


def of(deployment: Deployment) -> list[psutil.Process]:
    """All that name its run folder or belong to its engines, and their children."""
    groups = {int(file.read_text(encoding="ascii")) for file in deployment.groups().values()}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            named = any(deployment.config.run_dir in word for word in process.cmdline())
            if process.pid != os.getpid() and (named or os.getpgid(process.pid) in groups):
                found |= {one.pid: one for one in process.children(recursive=True)}
                found[process.pid] = process
        except (psutil.Error, ProcessLookupError):  # gone meanwhile, or not ours
            continue
    return list(found.values())


def mapped(processes: Iterable[psutil.Process]) -> set[str]:
    """Shared memory that is in use by ``processes``, by path."""
    found: set[str] = set()
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            fields = line.split(maxsplit=_MAPPED_AT)
            if len(fields) > _MAPPED_AT and fields[_MAPPED_AT].startswith(f"{SHARED_MEMORY}/"):
                found.add(fields[_MAPPED_AT])
    return found


def sockets(processes: Iterable[psutil.Process]) -> set[Path]:
    """Unix sockets that ``processes`` have open under a name."""
    found: set[Path] = set()
    for process in processes:
        try:
            names = {str(one.laddr) for one in process.net_connections(kind="unix")}
        except psutil.Error:
            continue
        found |= {Path(name) for name in names if name.startswith("/") and Path(name).exists()}
    return found


def open_files(process: psutil.Process) -> Iterator[OpenFile]:
    """Its regular files, but for memory that has a file's face. Raises OSError if not allowed."""
    folder = f"/proc/{process.pid}/fd"
    for number in os.listdir(folder):  # noqa: PTH208 - names are what is wanted
        path = f"{folder}/{number}"
        try:
            name, status = str(Path(path).readlink()), Path(path).stat()
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISREG(status.st_mode) and not name.startswith((SHARED_MEMORY, "/memfd:")):
            yield OpenFile(path, name, status.st_nlink == 0)
