"""Who calls. API keys are known by their SHA-256 digests, and never kept or logged in clear."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from kvstore.cluster import Tenant

_BEARER = "bearer"


class Keyring:
    """API keys of all tenants, as digests, and the operator's token. Immutable."""

    def __init__(self, tenants: Sequence[Tenant], token: str) -> None:
        self._token = token.encode()
        self._by_name = {tenant.name: tenant for tenant in tenants}
        self._keys = {
            bytes.fromhex(digest): tenant for tenant in tenants for digest in tenant.keys_sha256
        }

    def operator(self, token: str | None) -> bool:
        """Whether ``token`` is the cluster's own: who has it may see what tenants may not."""
        given = (token or "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self._token)

    def named(self, name: str) -> Tenant | None:
        """The tenant of that name."""
        return self._by_name.get(name)

    def tenant(self, authorization: str | None) -> Tenant | None:
        """Whose key an ``Authorization`` header bears; None if it bears none of ours."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != _BEARER or not key:
            return None
        # What the time of a look-up tells is of a digest, and nobody can make one that is like
        # another's: a key that is nearly right has a digest that is not.
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        return self._keys.get(digest)
