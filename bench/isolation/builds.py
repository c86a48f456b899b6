"""Copies of the proxy: as it is, and one that knows a single client and keeps nobody apart.

The second is made by replacing pieces of its text, each of which has to be there exactly once: a
proxy that was changed is not measured against something else by mistake.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.isolation.settings import IsolationFailed

PACKAGES = ("proxy", "kvstore")


@dataclass(frozen=True)
class Piece:
    """``old`` text of ``file``, from the beginning of a line, and what is to stand there."""

    file: str
    old: str
    new: str


def without_isolation(key: str) -> Sequence[Piece]:
    """What makes a proxy that serves one client, with that API ``key``.

    No digest of a key, no operator's token, no salt, no owner told to workers, no register of what
    runs, nothing said to workers of tenants, no field of a request judged, no scope within a tenant
    and no request of which nothing is kept.
    """
    one = f"return next(iter(self._by_name.values())) if authorization == {'Bearer ' + key!r} else"
    return (Piece("proxy/identity.py", _LOOK_UP, f"        {one} None\n"), *_LEFT_OUT)


def copied(folder: Path, pieces: Sequence[Piece]) -> Path:
    """A copy of the proxy's packages in ``folder``, with ``pieces`` replaced; a path to import
    them from. Raises IsolationFailed.
    """
    for package in PACKAGES:
        shutil.copytree(
            _source(package), folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for piece in pieces:
        path = folder / piece.file
        text = path.read_text(encoding="utf-8")
        if text.count(piece.old) != 1:
            first = piece.old.strip().splitlines()[0]
            raise IsolationFailed(
                f"{piece.file} has changed: {first!r} is to be left out for comparison, and is "
                f"there {text.count(piece.old)} times"
            )
        path.write_text(text.replace(piece.old, piece.new), encoding="utf-8")
    return folder


def _source(package: str) -> Path:
    """Where it is installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise IsolationFailed(f"{package} is not installed as files")
    return Path(found.submodule_search_locations[0])


_ONE_SALT = f"{'0' * 16}-0-{'0' * 64}"

_LOOK_UP = """\
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        return self._keys.get(digest)
"""

_LEFT_OUT = (
    Piece(
        "proxy/identity.py",
        """\
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != _BEARER or not key:
            return None
""",
        "",
    ),
    Piece(
        "proxy/app.py",
        """\
        explained = self._tenants.keyring.operator(request.headers.get(TOKEN_HEADER))
""",
        """\
        explained = False
""",
    ),
    Piece(
        "proxy/app.py",
        """\
    names = (AFFINITY_HEADER, ISOLATION_HEADER, "cache-control")
""",
        """\
    names = (AFFINITY_HEADER,)
""",
    ),
    Piece(
        "proxy/app.py",
        """\
        def flush() -> None:
            self._flushed = not self._complete
            if self._flushed:
                work.cancel(faults.FLUSHED)

        try:
            with self._tenants.one(self._call.tenant, flush):
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if self._complete:  # what is left is to put things away
                    await asyncio.wait({work})
            if self._flushed and not gone.done():
""",
        """\
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self._complete:
                await asyncio.wait({work})
            if self._flushed and not gone.done():
""",
    ),
    Piece(
        "proxy/requests.py",
        """\
    body = fields.admitted(told, _FATES[route])
""",
        """\
    body = told
""",
    ),
    Piece(
        "proxy/requests.py",
        """\
    options = fields.admitted(options, fields.STREAM_OPTIONS, "stream_options.")
""",
        "",
    ),
    Piece(
        "proxy/requests.py",
        """\
        sub_scope=_sub_scope(told.get("prompt_cache_isolation_key"), asides.isolation),
        kept=not (_flag(told, "no_store", "no_store") or _no_store(asides.cache_control)),
""",
        "",
    ),
    Piece(
        "proxy/pipeline.py",
        """\
        key = self._settings.salt_key
        if not request.kept:
            return one_shot(key, tenant.name, tenant.epoch)
        return salt(key, served.within(Scope(tenant.name, tenant.epoch, request.sub_scope)))
""",
        f"""\
        return {_ONE_SALT!r}
""",
    ),
    Piece(
        "kvstore/salts.py",
        """\
    found = _SALT.fullmatch(text)
    if found is None or int(found[2]) >= EPOCH_LIMIT:
        return None
    return Owner(found[1], int(found[2]), kept=found[3] is None)
""",
        """\
    return _NOBODY


_NOBODY = Owner("0" * TAG_CHARS, 0)
""",
    ),
    Piece(
        "proxy/dispatch.py",
        """\
        headers = {REQUEST_HEADER: job.call.request_id, OWNER_HEADER: job.claim}
""",
        """\
        headers = {REQUEST_HEADER: job.call.request_id}
""",
    ),
    Piece(
        "proxy/dispatch.py",
        """\
                OWNER_HEADER: job.claim,
""",
        "",
    ),
    Piece(
        "proxy/tenants.py",
        """\
        self._workers.say(self._standing(tenant) for tenant in self._tenants.values())
""",
        "",
    ),
)
