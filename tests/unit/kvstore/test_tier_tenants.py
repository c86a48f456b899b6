"""Whose objects the tier holds, against a model that looks at everything each time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore import standings
from kvstore.errors import WireError
from kvstore.messages import Standing
from kvstore.tier_tenants import TierTenants
from tests.support.salted import once_of, salt_of, tag_of

CAPACITY = 100
TENANTS = st.sampled_from(["alice", "bob", "carol"])
EPOCHS = st.integers(0, 3)
KEYS = st.integers(0, 15)
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])
SIZES = st.integers(1, 30)


@dataclass
class Thing:
    tenant: str
    epoch: int
    size: int
    leaving: bool = False
    overwritten: bool = False


@dataclass
class Flush:
    epoch: int
    begun: float


@dataclass
class Model:
    things: dict[int, Thing] = field(default_factory=dict)  # oldest first
    used: set[int] = field(default_factory=set)
    epochs: dict[str, int] = field(default_factory=dict)
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    flushes: dict[str, Flush] = field(default_factory=dict)

    def kept(self, tenant: str) -> int:
        return sum(t.size for t in self.things.values() if t.tenant == tenant and not t.leaving)

    def above_floor(self, tenant: str, more: int = 0) -> int:
        floor, _ = self.shares.get(tenant, (0.0, 1.0))
        return max(0, self.kept(tenant) + more - int(floor * CAPACITY))

    def is_over(self, thing: Thing) -> bool:
        return thing.epoch < self.epochs.get(thing.tenant, 0)

    def free(self, key: int) -> bool:
        return key not in self.used


class Tenants(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tenants: TierTenants[int] = TierTenants(CAPACITY)
        self.model = Model()
        self.now = 0.0

    @rule(tenant=TENANTS, epoch=EPOCHS, key=KEYS, size=SIZES)
    def put(self, tenant: str, epoch: int, key: int, size: int) -> None:
        self.tenants.put(salt_of(tenant, epoch), key, size)
        self.model.things.pop(key, None)
        thing = Thing(tenant, epoch, size)
        thing.leaving = self.model.is_over(thing)
        self.model.things[key] = thing

    @rule(keys=st.lists(KEYS))
    def touch(self, keys: list[int]) -> None:
        self.tenants.touch(keys)
        for key in keys:
            if key in self.model.things:
                self.model.things[key] = self.model.things.pop(key)

    @rule(keys=st.sets(KEYS))
    def use(self, keys: set[int]) -> None:
        self.model.used = keys

    @rule(keys=st.lists(KEYS))
    def go(self, keys: list[int]) -> None:
        self.tenants.gone(keys)
        for key in keys:
            self.model.things.pop(key, None)

    @rule(tenant=TENANTS, epoch=EPOCHS, floor=SHARES, limit=SHARES)
    def stand(self, tenant: str, epoch: int, floor: float, limit: float) -> None:
        self.now += 1.0
        self.tenants.stand([Standing(tag_of(tenant), epoch, floor, limit)], self.now)
        self.model.shares[tenant] = floor, limit
        if epoch > self.model.epochs.get(tenant, 0):
            self.model.epochs[tenant] = epoch
            self.model.flushes[tenant] = Flush(epoch, self.now)
            for thing in self.model.things.values():
                thing.leaving |= self.model.is_over(thing)

    @rule(tenant=TENANTS, more=SIZES)
    def outgrow(self, tenant: str, more: int) -> None:
        _, limit = self.model.shares.get(tenant, (0.0, 1.0))
        chosen = self.tenants.outgrown(tag_of(tenant), more, self.model.free)
        for key in chosen:
            assert self.model.kept(tenant) + more > int(limit * CAPACITY)
            self.leave(key, tenant)
        fits = self.model.kept(tenant) + more <= int(limit * CAPACITY)
        assert fits or self.oldest(tenant) is None
        assert self.tenants.room(tag_of(tenant)) == int(limit * CAPACITY) - self.model.kept(tenant)

    @rule(size=SIZES, asker=st.none() | TENANTS, more=SIZES)
    def borrow(self, size: int, asker: str | None, more: int) -> None:
        whose = {tag_of(tenant): tenant for tenant in ("alice", "bob", "carol")}
        asks = tag_of(asker) if asker else ""
        chosen = self.tenants.borrowed(size, self.model.free, asks, more)
        freed = 0
        for key in chosen:
            assert freed < size
            tenant = self.model.things[key].tenant
            freed += self.model.things[key].size
            givers = [t for t in whose.values() if self.oldest(t) is not None and t != asker]
            most = max(map(self.model.above_floor, givers), default=0)
            if tenant == asker:
                assert self.model.above_floor(asker, more) >= most
            else:
                assert 0 < self.model.above_floor(tenant) == most
            self.leave(key, tenant)
        if freed < size:
            others = [t for t in whose.values() if t != asker and self.model.above_floor(t) > 0]
            assert all(self.oldest(tenant) is None for tenant in others)
            assert asker is None or self.oldest(asker) is None

    def oldest(self, tenant: str) -> int | None:
        found = self.model.things.items()
        mine = [key for key, t in found if t.tenant == tenant and not t.leaving]
        return next(filter(self.model.free, mine), None)

    def leave(self, key: int, tenant: str) -> None:
        assert key == self.oldest(tenant)
        self.model.things[key].leaving = True

    @rule(keys=st.lists(KEYS))
    def stay(self, keys: list[int]) -> None:
        for key in keys:
            self.tenants.stay(key)
            thing = self.model.things.get(key)
            if thing is not None and thing.leaving and not self.model.is_over(thing):
                thing.leaving = thing.overwritten = False
                self.model.things[key] = self.model.things.pop(key)

    @rule(keys=st.lists(KEYS))
    def overwrite(self, keys: list[int]) -> None:
        over = self.tenants.unwiped(keys)
        self.tenants.overwritten(over)
        for key in over:
            assert self.model.things[key].leaving
            self.model.things[key].overwritten = True

    @rule()
    def wipe(self) -> None:
        things = self.model.things.values()
        awaited = {t.tenant for t in things if self.model.is_over(t) and not t.overwritten}
        done = {
            tag_of(tenant): flush
            for tenant, flush in self.model.flushes.items()
            if tenant not in awaited
        }
        told = {wiped.tag: wiped for wiped in self.tenants.wiped(self.now)}
        assert set(told) == set(done)
        for tag, flush in done.items():
            assert (told[tag].epoch, told[tag].seconds) == (flush.epoch, self.now - flush.begun)
        for tenant in set(self.model.flushes) - awaited:
            del self.model.flushes[tenant]

    @invariant()
    def is_as_the_model(self) -> None:
        things = self.model.things.items()
        (usage,) = self.tenants.usage()
        assert {one.tag: one.kept for one in usage.holdings} == {
            tag_of(t.tenant): self.model.kept(t.tenant) for _, t in things if not t.leaving
        }
        assert set(self.tenants.over()) == {key for key, t in things if self.model.is_over(t)}
        assert all(self.tenants.size(key) == t.size for key, t in things)
        assert all((key in self.tenants) == (not t.leaving) for key, t in things)

    @invariant()
    def only_what_holds_is_allowed(self) -> None:
        for tenant, epoch in self.model.epochs.items():
            assert self.tenants.allows(salt_of(tenant, epoch))
            assert not self.tenants.allows(salt_of(tenant, epoch - 1))
            assert not self.tenants.allows(once_of(tenant, epoch))


TestTenants = Tenants.TestCase


def test_usage_of_many_tenants_comes_in_parts() -> None:
    tenants: TierTenants[int] = TierTenants(10_000)
    for number in range(2_500):
        tenants.put(salt_of(str(number)), number, 2)
    parts = tenants.usage()
    assert [(p.part, p.parts, len(p.holdings)) for p in parts] == [
        (0, 3, 1024),
        (1, 3, 1024),
        (2, 3, 452),
    ]
    assert len({one.tag for part in parts for one in part.holdings}) == 2_500


def test_a_flush_in_a_flush_ends_both() -> None:
    tenants: TierTenants[int] = TierTenants(CAPACITY)
    tenants.put(salt_of("alice"), 1, 10)
    tenants.stand([Standing(tag_of("alice"), 1)], 1.0)
    tenants.put(salt_of("alice", 1), 2, 20)
    tenants.stand([Standing(tag_of("alice"), 2)], 3.0)
    assert tenants.wiped(4.0) == []
    tenants.gone([1, 2])
    (wiped,) = tenants.wiped(5.0)
    assert (wiped.epoch, wiped.size, wiped.seconds) == (2, 30, 2.0)


def test_one_tenant_too_many_is_refused_and_those_before_it_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standings, "MAX_TAGS", 1)
    tenants: TierTenants[int] = TierTenants(CAPACITY)
    told = [Standing(tag_of(tenant), 1) for tenant in ("alice", "bob")]
    with pytest.raises(WireError):
        tenants.stand(told, 0.0)
    assert not tenants.allows(salt_of("alice"))
    assert tenants.allows(salt_of("bob"))
    assert [wiped.tag for wiped in tenants.wiped(0.0)] == [tag_of("alice")]
