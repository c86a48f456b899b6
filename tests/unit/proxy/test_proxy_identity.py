"""Keys to tenants, and salts that never collide."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.cluster import Tenant
from proxy.identity import Keyring, Scope, packed, salt

KEY = b"k" * 32
TEXT = st.text(max_size=12)
SCOPES = st.builds(Scope, TEXT, st.integers(0, 1 << 40), TEXT, TEXT, TEXT)


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


@given(st.lists(TEXT, min_size=5, max_size=5), st.lists(TEXT, min_size=5, max_size=5))
def test_packed_fields_are_told_apart(one: list[str], other: list[str]) -> None:
    assert (packed(one) == packed(other)) == (one == other)


@given(st.lists(TEXT, min_size=2, max_size=5), st.data())
def test_moving_a_boundary_between_fields_shows(fields: list[str], draw: st.DataObject) -> None:
    joined = "".join(fields)
    cuts = sorted(
        draw.draw(st.integers(0, len(joined)), label="cut") for _ in range(len(fields) - 1)
    )
    bounds = [0, *cuts, len(joined)]
    moved = [joined[a:b] for a, b in itertools.pairwise(bounds)]
    assert (packed(moved) == packed(fields)) == (moved == fields)


@given(SCOPES, SCOPES)
def test_scopes_have_salts_of_their_own(one: Scope, other: Scope) -> None:
    assert (salt(KEY, one) == salt(KEY, other)) == (one == other)


def test_salt_depends_on_everything() -> None:
    scope = Scope("t", 1, "s", "a", "r")
    salts = {salt(KEY, scope), salt(b"other" * 8, scope)}
    for field in dataclasses.fields(Scope):
        changed: Any = 2 if field.name == "epoch" else "x"
        salts.add(salt(KEY, dataclasses.replace(scope, **{field.name: changed})))
    assert len(salts) == 2 + len(dataclasses.fields(Scope))
    assert all(len(value) == 64 for value in salts)


def test_salt_is_the_same_everywhere() -> None:
    # Spelt out: workers' caches outlive the proxy that derived a salt.
    message = bytes(7) + b"\x05alice" + bytes(8) + bytes(8) + bytes(8) + bytes(7) + b"\x010"
    assert salt(KEY, Scope("alice", 0)) == hmac.new(KEY, message, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("token", [None, "", "toke", "a1", "token\udcff"])
def test_who_has_not_the_clusters_token_is_no_operator(token: str | None) -> None:
    assert not KEYRING.operator(token)


def test_an_operator_and_tenants_by_name() -> None:
    assert KEYRING.operator("token")
    assert getattr(KEYRING.named("bob"), "name", None) == "bob"
    assert KEYRING.named("carol") is None
