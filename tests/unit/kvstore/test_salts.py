"""Salts never collide, tell whose they are, and are the same everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.salts import Owner, Scope, claimed, one_shot, owner, salt, tag
from kvstore.tier import is_kept

KEY = b"k" * 32
ANYWHERE = re.compile(r"[0-9a-z-]{1,128}")
"""What vLLM and LMCache both take for a salt."""
TEXT = st.text(max_size=12)
EPOCHS = st.integers(0, (1 << 32) - 1)
SCOPES = st.builds(Scope, TEXT, EPOCHS, TEXT, TEXT, TEXT)


@given(SCOPES, SCOPES)
def test_scopes_have_salts_of_their_own(one: Scope, other: Scope) -> None:
    assert (salt(KEY, one) == salt(KEY, other)) == (one == other)


@given(st.lists(TEXT, min_size=4, max_size=4), st.integers(0, 8), st.integers(0, 2))
def test_moving_a_boundary_between_fields_shows(fields: list[str], cut: int, at: int) -> None:
    joined = fields[at] + fields[at + 1]
    moved = list(fields)
    moved[at : at + 2] = joined[:cut], joined[cut:]
    one, other = (Scope(t, 0, s, a, r) for t, s, a, r in (fields, moved))
    assert (salt(KEY, one) == salt(KEY, other)) == (one == other)


def test_a_salt_depends_on_everything() -> None:
    scope = Scope("t", 1, "s", "a", "r")
    salts = {salt(KEY, scope), salt(b"other" * 8, scope)}
    for field in dataclasses.fields(Scope):
        changed: Any = 2 if field.name == "epoch" else "x"
        salts.add(salt(KEY, dataclasses.replace(scope, **{field.name: changed})))
    assert len(salts) == 2 + len(dataclasses.fields(Scope))


def test_a_salt_is_the_same_everywhere() -> None:
    # Spelt out: workers' caches outlive the proxy that derived a salt.
    message = bytes(7) + b"\x05alice" + bytes(8) + bytes(8) + bytes(8) + bytes(7) + b"\x010"
    named = bytes(7) + b"\x03tag" + bytes(7) + b"\x05alice"
    digest = hmac.new(KEY, message, hashlib.sha256).hexdigest()
    assert tag(KEY, "alice") == hmac.new(KEY, named, hashlib.sha256).hexdigest()[:16]
    assert salt(KEY, Scope("alice", 0)) == f"{tag(KEY, 'alice')}-0-{digest}"


@given(SCOPES)
def test_a_salt_tells_its_owner_and_is_one_everywhere(scope: Scope) -> None:
    text = salt(KEY, scope)
    assert owner(text) == Owner(tag(KEY, scope.tenant), scope.epoch)
    assert ANYWHERE.fullmatch(text)
    assert is_kept(text)


@given(TEXT, EPOCHS)
def test_a_one_shot_salt_is_nobody_elses_and_not_kept(tenant: str, epoch: int) -> None:
    text, again = one_shot(KEY, tenant, epoch), one_shot(KEY, tenant, epoch)
    assert text != again
    assert owner(text) == owner(again) == Owner(tag(KEY, tenant), epoch, kept=False)
    assert ANYWHERE.fullmatch(text)
    assert not is_kept(text)


@given(SCOPES)
def test_a_claim_is_read_as_it_was_made(scope: Scope) -> None:
    whose = owner(salt(KEY, scope))
    assert whose is not None
    assert claimed(whose.claim) == whose


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0" * 64,
        f"{'0' * 16}-0-{'0' * 63}",
        f"{'0' * 16}-0-{'0' * 65}",
        f"{'0' * 16}-00-{'0' * 64}",
        f"{'0' * 16}--1-{'0' * 64}",
        f"{'0' * 16}-4294967296-{'0' * 64}",
        f"{'A' * 16}-0-{'0' * 64}",
        f"{'0' * 16}-0-twice-{'0' * 64}",
        f"{'0' * 16}-0-{'0' * 64}\n",
        f"{'0' * 16}-\u0661-{'0' * 64}",
    ],
)
def test_what_is_no_salt_has_no_owner(text: str) -> None:
    assert owner(text) is None
    assert claimed(text) is None


@pytest.mark.parametrize("text", ["", "0" * 16, f"{'0' * 16}-", f"{'0' * 16}-4294967296", "0-0"])
def test_what_is_no_claim_claims_nothing(text: str) -> None:
    assert claimed(text) is None
