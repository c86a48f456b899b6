"""The cluster's secrets: made on the first start, kept in a private folder, read by every process.

``state_dir/keys/`` holds one 32-byte cluster secret, from which every other symmetric key is
derived, and one CURVE key pair per role. Folders have mode 0700, files 0600; anything more open,
or owned by somebody else, is refused. A cluster of several hosts has the same files on each.

The keys are written into a folder of their own which is then renamed into place, so that of
several processes starting at once one wins and all the others read what it wrote.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from kvstore.errors import ConfigError
from kvstore.private import require_private
from kvstore.transport.curve import new_key_pair

PeerRole = Literal["proxy", "prefill", "decode"]

SECRET_BYTES = 32
CURVE_KEY_BYTES = 40
"""A CURVE key as Z85 text."""

TOKEN_HEADER = "x-kvferry-token"  # noqa: S105 - its name
"""Where an HTTP request bears ``Credentials.http_token``."""

KEYS = "keys"
_CLUSTER_KEY = "cluster.secret"


@dataclass(frozen=True)
class CurvePair:
    """One role's CURVE keys, 40 bytes of Z85 text each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Credentials:
    """What proves that a process belongs to this cluster. Its repr shows no secret."""

    secret: bytes = field(repr=False)
    pairs: Mapping[PeerRole, CurvePair] = field(repr=False)

    def salt_key(self) -> bytes:
        """Key (32 bytes) under which tenants' salts are derived."""
        return self._derived("kvferry salt 1")

    def transport_key(self) -> bytes:
        """Key (32 bytes) of the MAC that opens a transfer."""
        return self._derived("kvferry transport 1")

    def http_token(self) -> str:
        """Bearer token (64 hex digits) a proxy shows to a worker."""
        return self._derived("kvferry http 1").hex()

    def public_key(self, role: PeerRole) -> bytes:
        """CURVE public key of ``role``, Z85."""
        return self.pairs[role].public

    def secret_key(self, role: PeerRole) -> bytes:
        """CURVE secret key of ``role``, Z85."""
        return self.pairs[role].secret

    def _derived(self, label: str) -> bytes:
        return hmac.new(self.secret, label.encode(), hashlib.sha256).digest()


def load_or_create(state_dir: Path) -> Credentials:
    """The credentials in ``state_dir``, made now if this is the first start.

    Raises ConfigError, one line with the path and the fix, when the folder or a file in it is
    open to others, not ours, unreadable or incomplete.
    """
    keys = state_dir / KEYS
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(state_dir.stat(), state_dir)
        if not keys.exists():
            _create(state_dir, keys)
    except OSError as error:
        where = error.filename or state_dir
        raise ConfigError(f"cannot keep keys in {where}: {error.strerror}") from None
    return load(state_dir)


def load(state_dir: Path) -> Credentials:
    """The credentials in ``state_dir`` of a cluster that was started. Raises ConfigError as above,
    and where there are none: who only asks makes no cluster.
    """
    keys = state_dir / KEYS
    if not keys.exists():
        raise ConfigError(f"there are no keys in {state_dir}: start the cluster, or copy them here")
    try:
        require_private(state_dir.stat(), state_dir)
        require_private(keys.stat(), keys)
        return _read(keys)
    except OSError as error:
        where = error.filename or keys
        raise ConfigError(f"cannot read keys in {where}: {error.strerror}") from None


def _create(state_dir: Path, keys: Path) -> None:
    fresh = Path(tempfile.mkdtemp(prefix=f".{KEYS}-", dir=state_dir))
    try:
        _write(fresh / _CLUSTER_KEY, secrets.token_bytes(SECRET_BYTES))
        for role in get_args(PeerRole):
            _write(fresh / f"{role}.curve", b"\n".join(new_key_pair()))
        # Fails where another process was first: a folder replaces only an empty one.
        fresh.rename(keys)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        if not keys.exists():
            raise


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(keys: Path) -> Credentials:
    secret = _content(keys / _CLUSTER_KEY, SECRET_BYTES)
    pairs: dict[PeerRole, CurvePair] = {}
    for role in get_args(PeerRole):
        text = _content(keys / f"{role}.curve", 2 * CURVE_KEY_BYTES + 1)
        pairs[role] = CurvePair(text[:CURVE_KEY_BYTES], text[CURVE_KEY_BYTES + 1 :])
    return Credentials(secret, pairs)


def _content(path: Path, size: int) -> bytes:
    # The opened file is what is checked: its name could be pointed elsewhere in between.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        require_private(os.fstat(file.fileno()), path)
        content = file.read(size + 1)
    if len(content) != size:
        raise ConfigError(f"{path} is not a kvferry key: delete {path.parent} and start anew")
    return content
