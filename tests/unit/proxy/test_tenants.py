"""Who may call, in which epoch, and who has to end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
import pytest

from kvstore import salts
from kvstore.cluster import Tenant
from kvstore.errors import ApiError
from kvstore.messages import Standing
from proxy.tenants import Tenants

KEY = b"k" * 32


class Workers:
    def __init__(self) -> None:
        self.said: list[Standing] = []

    def say(self, standings: Iterable[Standing]) -> None:
        self.said += standings


def tenant(name: str, *keys: str, **settings: float) -> Tenant:
    digests = tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
    return msgspec.convert(
        {"name": name, "keys_sha256": digests, **settings}, type=Tenant, strict=False
    )


@pytest.fixture
def workers() -> Workers:
    return Workers()


def started(workers: Workers, *tenants: Tenant) -> Tenants:
    return Tenants(tenants or [tenant("alice", "a1"), tenant("bob", "b1")], "token", KEY, workers)


def caller(tenants: Tenants, key: str) -> Tenant:
    found = tenants.keyring.tenant(f"Bearer {key}")
    assert found is not None
    return found


def test_a_flush_raises_the_epoch_of_one_tenant_and_says_so(workers: Workers) -> None:
    tenants = started(workers)
    said = tenants.flush("alice")
    assert said == Standing(salts.tag(KEY, "alice"), 1) == workers.said[-1]
    assert (caller(tenants, "a1").epoch, caller(tenants, "b1").epoch) == (1, 0)
    assert tenants.flush("carol") is None


def test_what_is_remembered_of_who_is_flushed_is_dropped(workers: Workers) -> None:
    forgotten: list[str] = []
    known = [tenant("alice", "a1"), tenant("bob", "b1")]
    tenants = Tenants(known, "token", KEY, workers, forgotten.append)
    tenants.flush("alice")
    tenants.apply([])
    alice, bob = (salts.tag(KEY, name) for name in ("alice", "bob"))
    assert forgotten == [alice, alice, bob]


def test_what_runs_ends_and_nothing_of_others(workers: Workers) -> None:
    tenants, ended = started(workers), list[str]()
    alice, bob = caller(tenants, "a1"), caller(tenants, "b1")
    with (
        tenants.one(alice, lambda: ended.append("alice")),
        tenants.one(bob, lambda: ended.append("bob")),
    ):
        assert tenants.running == {"alice": 1, "bob": 1}
        tenants.flush("alice")
        assert ended == ["alice"]
    assert not tenants.running
    tenants.flush("alice")
    assert ended == ["alice"]


def test_who_authenticated_before_a_flush_does_not_begin_after_it(workers: Workers) -> None:
    tenants = started(workers)
    before = caller(tenants, "a1")
    tenants.flush("alice")
    with pytest.raises(ApiError, match="flushed"), tenants.one(before, lambda: None):
        raise AssertionError
    assert not tenants.running


def test_epochs_told_by_workers_never_fall(workers: Workers) -> None:
    tenants, tag = started(workers), salts.tag(KEY, "alice")
    tenants.raised(tag, 5)
    tenants.raised(tag, 3)
    assert caller(tenants, "a1").epoch == 5
    tenants.apply([tenant("alice", "a1", epoch=2)])
    assert caller(tenants, "a1").epoch == 5
    tenants.apply([tenant("alice", "a1", epoch=9)])
    assert caller(tenants, "a1").epoch == 9
    tenants.raised("0" * 16, 7)  # of nobody here: kept, should it come


def test_an_epoch_of_the_file_that_flushes_nothing_is_warned_of(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = started(workers)
    tenants.flush("alice")
    tenants.flush("alice")
    tenants.apply([tenant("alice", "a1"), tenant("bob", "b1", epoch=1)])
    assert not caplog.records
    tenants.apply([tenant("alice", "a1", epoch=2), tenant("bob", "b1", epoch=1)])
    assert caller(tenants, "a1").epoch == 2
    (warned,) = caplog.messages
    assert "alice" in warned
    assert "use kvferry flush" in warned
    tenants.apply([tenant("alice", "a1", epoch=3), tenant("bob", "b1", epoch=1)])
    assert caller(tenants, "a1").epoch == 3
    assert len(caplog.messages) == 1


def test_a_tenant_that_leaves_and_returns_is_as_flushed_as_before(workers: Workers) -> None:
    tenants = started(workers)
    tenants.flush("alice")
    tenants.apply([tenant("bob", "b1")])
    assert tenants.keyring.tenant("Bearer a1") is None
    tenants.apply([tenant("alice", "a1")])
    assert caller(tenants, "a1").epoch == 1


def test_keys_rotate_with_an_overlap_and_without_ending_anything(workers: Workers) -> None:
    tenants, ended = started(workers), list[str]()
    with tenants.one(caller(tenants, "a1"), lambda: ended.append("alice")):
        tenants.apply([tenant("alice", "a1", "a2")])
        assert caller(tenants, "a1") == caller(tenants, "a2")
        tenants.apply([tenant("alice", "a2")])
        assert tenants.keyring.tenant("Bearer a1") is None
        assert ended == []
        tenants.apply([tenant("bob", "b1")])
        assert ended == ["alice"]


def test_a_tenant_has_as_many_requests_as_it_may(workers: Workers) -> None:
    tenants = started(workers, tenant("alice", "a1", max_requests=1))
    alice = caller(tenants, "a1")
    with tenants.one(alice, lambda: None):
        with pytest.raises(ApiError) as refused, tenants.one(alice, lambda: None):
            raise AssertionError
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
    with tenants.one(alice, lambda: None):
        assert tenants.running["alice"] == 1


def test_shares_of_the_file_are_said(workers: Workers) -> None:
    tenants = started(workers, tenant("alice", "a1", cache_floor=0.25, cache_limit=0.5))
    tag = tenants.tag("alice")
    assert workers.said == [Standing(tag, 0, 0.25, 0.5)]
    assert tenants.flush("alice") == Standing(tag, 1, 0.25, 0.5)
    assert tenants.named(tag) == "alice"
