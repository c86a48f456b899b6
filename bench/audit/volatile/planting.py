"""The positive control: what a search must find, written where it may be and taken away again."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.audit.volatile import canary
from bench.audit.volatile.canary import Form


@contextmanager
def planted(folders: Iterable[str], forms: Sequence[Form]) -> Iterator[dict[str, str]]:
    """A file with all ``forms`` in each folder that may be written to; folder to file."""
    content = canary.planted(forms)
    files: dict[str, str] = {}
    try:
        for folder in dict.fromkeys(folders):
            file = f"{folder.rstrip('/')}/.kvferry-audit-{secrets.token_hex(8)}"
            if _written(file, content):
                files[folder] = file
        yield files
    finally:
        for file in files.values():
            Path(file).unlink(missing_ok=True)


def _written(file: str, content: bytes) -> bool:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
    except OSError:  # it is full
        Path(file).unlink(missing_ok=True)
        return False
    return True
