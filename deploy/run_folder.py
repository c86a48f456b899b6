"""The run folder: a private place for sockets, process records and configurations of this host."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from deploy import places
from kvstore import worker
from kvstore.cluster import ClusterConfig
from kvstore.errors import ConfigError
from kvstore.messages import ROLES
from kvstore.private import require_private

RESOLVED = "cluster.toml"
LOCK = "lock"


def made(config: ClusterConfig) -> Path:
    """The folder, which others cannot enter. Raises ConfigError when it cannot be had so."""
    folder = Path(config.run_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(folder.lstat(), folder)
    except OSError as error:
        raise ConfigError(f"cannot use run_dir {folder}: {error.strerror}") from None
    return folder


@contextlib.contextmanager
def owned(config: ClusterConfig) -> Iterator[Path]:
    """The folder, ours alone while this lasts and empty afterwards.

    Raises ConfigError when another ``up`` has it.
    """
    folder = made(config)
    with (folder / LOCK).open("a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"kvferry runs already in {folder}: stop it, or choose another --port, dram.port "
                "and dram.http_port"
            ) from None
        _clear(folder)
        try:
            yield folder
        finally:
            _clear(folder)
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's file is in it
                folder.rmdir()


def write(config: ClusterConfig, file: Path) -> Path:
    """``file``, with ``config`` in it, for a child to read."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(places.to_toml(config))
    return file


def _clear(folder: Path) -> None:
    """Ends what a killed run has left and removes its files, and nothing but those; also of workers
    that joined later.
    """
    for file in folder.glob("*.group"):
        worker.end_group(file)
    for name in (*(f"{role}-[0-9]*" for role in ROLES), "dram", "proxy"):
        for file in folder.glob(f"{name}.*"):
            file.unlink(missing_ok=True)
    (folder / RESOLVED).unlink(missing_ok=True)
