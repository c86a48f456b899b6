"""What only our own user may touch: key files, and folders with sockets in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kvstore.errors import ConfigError


def require_private(status: os.stat_result, path: Path) -> None:
    """Raises ConfigError, with the fix, if ``path`` (of ``status``) is not ours alone."""
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {status.st_uid}: run as that user or choose another place"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
        raise ConfigError(
            f"{path} is open to other users: run chmod {mode} {path}, "
            "or delete it if anyone may have read it"
        )
