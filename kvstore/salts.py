"""The salt: what keeps one tenant's KV from every other's, wherever KV is kept.

A salt is ``TAG-EPOCH-DIGEST``. The digest is HMAC-SHA256 under the cluster's salt key over all that
a scope is made of, each field with its length, so that no two scopes share one. Tag and epoch stand
before it in clear, so that whoever keeps KV knows whose it is and whether it may still be used
(:func:`owner`), and learns no name. The salt of a request of which nothing may be kept is
``TAG-EPOCH-once-RANDOM``: no other request ever has it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

TAG_CHARS = 16
EPOCH_LIMIT = 1 << 32

OWNER_HEADER = "x-kvferry-owner"
"""Where a leg claims its owner (``Owner.claim``)."""

_ONCE = "once"
_SALTS = 1 << 14
"""Whose owner is at hand: every step of an engine and of a request asks again."""
_SALT = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,9})-(once-)?[0-9a-f]{64}")
_CLAIM = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,9})")


@dataclass(frozen=True)
class Scope:
    """What one salt covers. ``sub_scope`` divides a tenant; an adapter has its own KV."""

    tenant: str
    epoch: int
    sub_scope: str = ""
    adapter: str = ""
    adapter_revision: str = ""


@dataclass(frozen=True)
class Owner:
    """Whose KV it is: a tenant, by its tag, in one of its epochs. ``kept``: it may be kept."""

    tag: str
    epoch: int
    kept: bool = True

    @property
    def claim(self) -> str:
        """Tag and epoch as the header of a leg says them."""
        return f"{self.tag}-{self.epoch}"


def tag(key: bytes, tenant: str) -> str:
    """What ``tenant`` is known by to workers: 16 hex digits, the same in all its epochs."""
    return hmac.new(key, _packed(("tag", tenant)), hashlib.sha256).hexdigest()[:TAG_CHARS]


def salt(key: bytes, scope: Scope) -> str:
    """The salt of ``scope`` under the cluster's salt ``key``."""
    fields = (
        scope.tenant,
        scope.sub_scope,
        scope.adapter,
        scope.adapter_revision,
        str(scope.epoch),
    )
    digest = hmac.new(key, _packed(fields), hashlib.sha256).hexdigest()
    return f"{tag(key, scope.tenant)}-{scope.epoch}-{digest}"


def one_shot(key: bytes, tenant: str, epoch: int) -> str:
    """A salt for one request, of which nothing is kept; another one with every call."""
    return f"{tag(key, tenant)}-{epoch}-{_ONCE}-{secrets.token_hex(32)}"


@lru_cache(_SALTS)
def owner(text: str) -> Owner | None:
    """Whose salt ``text`` is; None where it is none."""
    found = _SALT.fullmatch(text)
    if found is None or int(found[2]) >= EPOCH_LIMIT:
        return None
    return Owner(found[1], int(found[2]), kept=found[3] is None)


def claimed(text: str) -> Owner | None:
    """The owner that a leg's header claims (``Owner.claim``); None where it claims none."""
    found = _CLAIM.fullmatch(text)
    if found is None or int(found[2]) >= EPOCH_LIMIT:
        return None
    return Owner(found[1], int(found[2]))


def _packed(fields: Sequence[str]) -> bytes:
    """``fields`` joined so that different sequences of the same number never look alike."""
    encoded = [field.encode("utf-8", "surrogatepass") for field in fields]
    return b"".join(len(field).to_bytes(8, "big") + field for field in encoded)
