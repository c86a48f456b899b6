"""What could have been written to on this host, and which files of it have to be searched."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_NO_FILES = frozenset(
    {
        *("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs"),
        *("tracefs", "securityfs", "bpf", "pstore", "configfs", "fusectl", "autofs", "nsfs"),
        *("binfmt_misc", "rpc_pipefs", "selinuxfs", "efivarfs"),
    }
)
_ESCAPED = re.compile(r"\\([0-7]{3})")
_SLACK_SECONDS = 2.0
"""By which a file's times may lie behind the clock."""


class Mount(NamedTuple):
    """A file system that is mounted at ``path``; ``writable``: as far as the mount goes."""

    path: str
    kind: str
    writable: bool

    @property
    def searched(self) -> bool:
        """A prompt could have been written there."""
        return self.writable and self.kind not in _NO_FILES


def mounts(text: str) -> list[Mount]:
    """All in ``text``, in the form of /proc/mounts. Pure.

    Of several at one place only the last can be seen.
    """
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        _source, path, kind, options, *_ = line.split(" ")
        path = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), path)
        found.pop(path, None)
        found[path] = Mount(path, kind, "rw" in options.split(","))
    return list(found.values())


def swaps(text: str) -> list[str]:
    """The devices and files in ``text``, in the form of /proc/swaps. Pure."""
    return [line.split()[0] for line in text.splitlines()[1:] if line.strip()]


class Walk:
    """The files of mounts that changed ``since`` (seconds since 1970). ``mounted``: all mounts'
    places; a walk of one does not enter another. ``unreadable`` folders are counted.
    """

    def __init__(self, mounted: Sequence[str], since: float) -> None:
        self._mounted = frozenset(mounted)
        self._since = since - _SLACK_SECONDS
        self.unreadable = 0
        self.looked_at = 0

    def changed(self, top: str) -> Iterator[str]:
        """Below ``top``, or ``top`` itself where that is a file."""
        if not stat.S_ISDIR(Path(top).stat().st_mode):
            yield top
            return
        folders = [top]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if entry.path not in self._mounted:
                                folders.append(entry.path)
                        elif self._is_changed(entry):
                            yield entry.path
            except OSError:
                self.unreadable += 1

    def _is_changed(self, entry: os.DirEntry[str]) -> bool:
        self.looked_at += 1
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # gone meanwhile
            return False
        changed = max(status.st_mtime, status.st_ctime) >= self._since
        return changed and stat.S_ISREG(status.st_mode)


def core_folder(pattern: str, cwd: Path) -> Path | None:
    """Where core files of a process in ``cwd`` would go; None where a program takes them. Pure."""
    if pattern.startswith("|"):
        return None
    return (cwd / pattern).parent
