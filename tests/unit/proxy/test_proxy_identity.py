"""Keys to tenants."""

from __future__ import annotations

import hashlib

import pytest

from kvstore.cluster import Tenant
from proxy.identity import Keyring


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


KEYRING = Keyring(
    [
        Tenant(name="alice", keys_sha256=(digest("a1"), digest("a2"))),
        Tenant(name="bob", keys_sha256=(digest("b1"),)),
    ],
    "token",
)


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        ("Bearer a1", "alice"),
        ("bearer a2", "alice"),
        ("Bearer  b1 ", "bob"),
        ("Bearer b2", None),
        ("Bearer ", None),
        ("Bearer", None),
        ("Basic a1", None),
        ("a1", None),
        ("", None),
        (None, None),
        (f"Bearer {digest('a1')}", None),
        ("Bearer \udcff", None),
    ],
)
def test_keyring(authorization: str | None, name: str | None) -> None:
    tenant = KEYRING.tenant(authorization)
    assert (tenant.name if tenant else None) == name


def test_nobody_without_tenants() -> None:
    assert Keyring([], "token").tenant("Bearer a1") is None


@pytest.mark.parametrize("token", [None, "", "toke", "a1", "token\udcff"])
def test_who_has_not_the_clusters_token_is_no_operator(token: str | None) -> None:
    assert not KEYRING.operator(token)


def test_an_operator_and_tenants_by_name() -> None:
    assert KEYRING.operator("token")
    assert getattr(KEYRING.named("bob"), "name", None) == "bob"
    assert KEYRING.named("carol") is None
