"""Folders and sockets that only the deployment's own user may enter: on one host, the lock."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

from bench.audit.deployment import Deployment
from bench.audit.findings import Finding
from bench.audit.refusals.attempt import Attempt, not_tried, row

NOBODY = 65534
_CONNECT_SECONDS = 2.0
_REFUSALS = {errno.EACCES, errno.EPERM}


def modes(deployment: Deployment) -> Finding:
    """Nobody but their owner may even look into them."""
    state = Path(deployment.config.state_dir)
    folders = [deployment.run_dir, state, state / "keys"]
    files = [file for file in (state / "keys").iterdir() if file.is_file()]
    files += [file for file in deployment.run_dir.iterdir() if file.suffix == ".toml"]
    attempts = [_closed(path) for path in (*folders, *files)]
    return row("private folders and keys", attempts)


def _closed(path: Path) -> Attempt:
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    closed = not mode & 0o077 and status.st_uid == os.geteuid()
    return Attempt(str(path), closed, f"mode {mode:o}, user {status.st_uid}")


def another_user(deployment: Deployment, elsewhere: Iterable[Path] = ()) -> Finding:
    """A user of the same host at every socket of the run folder and those ``elsewhere``, such as
    engines' own in the temporary folder; and at the keys.
    """
    name = "another user of this host"
    if os.geteuid() != 0:
        return not_tried(name, "only root can try as another user; see the folders' modes")
    sockets = sockets_in(deployment.run_dir)
    keys = sorted((Path(deployment.config.state_dir) / "keys").iterdir())
    ours = [path for path in sockets if _connected(path) != 0]
    control = f"we cannot connect to {', '.join(path.name for path in ours)}" if ours else ""
    if not sockets:
        control = "there is no socket in the run folder"
    return row(name, _as_nobody(sorted({*sockets, *elsewhere}), keys), control)


def sockets_in(folder: Path) -> list[Path]:
    """Stream sockets that somebody may listen on."""
    return sorted(path for path in folder.iterdir() if stat.S_ISSOCK(path.lstat().st_mode))


def _as_nobody(sockets: Iterable[Path], files: Iterable[Path]) -> list[Attempt]:
    """Tries in a thread whose file-system user is another one: Linux keeps that by thread."""
    attempts: list[Attempt] = []

    def tries() -> None:
        libc = ctypes.CDLL(None)
        libc.setfsgid(NOBODY)
        libc.setfsuid(NOBODY)
        for path in sockets:
            number = _connected(path)
            if number == errno.ENOENT:  # gone meanwhile
                continue
            told = os.strerror(number) if number else "connected"
            attempts.append(Attempt(f"connect to {path.name}", number in _REFUSALS, told))
        for path in files:
            number = _opened(path)
            told = os.strerror(number) if number else "opened"
            attempts.append(Attempt(f"read {path.name}", number in _REFUSALS, told))

    thread = threading.Thread(target=tries)
    thread.start()
    thread.join()
    return attempts


def _connected(path: Path) -> int:
    """0, or the error's number."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(_CONNECT_SECONDS)
        return knocking.connect_ex(str(path))


def _opened(path: Path) -> int:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0
