"""Salts of made-up tenants, for tests that keep KV under them."""

from __future__ import annotations

from kvstore.salts import Scope, one_shot, salt, tag

KEY = bytes(32)


def tag_of(tenant: str) -> str:
    return tag(KEY, tenant)


def salt_of(tenant: str, epoch: int = 0) -> str:
    return salt(KEY, Scope(tenant, epoch))


def once_of(tenant: str, epoch: int = 0) -> str:
    """Of a request of which nothing is kept."""
    return one_shot(KEY, tenant, epoch)
