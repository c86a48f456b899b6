"""Who calls. API keys are compared as SHA-256 digests, in constant time, and never kept or logged
in clear.
"""

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
        self._keys = tuple(
            (bytes.fromhex(digest), tenant) for tenant in tenants for digest in tenant.keys_sha256
        )

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
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: Tenant | None = None
        for known, tenant in self._keys:  # all of them: the time taken tells nothing
            if hmac.compare_digest(known, digest):
                found = tenant
        return found
