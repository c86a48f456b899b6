"""Tenants that wait share equally, however much one of them asks for."""

from __future__ import annotations

from proxy.turns import Turns


def test_a_tenant_alone_is_first_come_first_served() -> None:
    turns = Turns()
    asked = [turns.next("a", 1.0, now) for now in (0.0, 0.0, 0.0, 5.0)]
    assert asked == [0.0, 1.0, 2.0, 5.0]


def test_a_quiet_tenant_is_not_behind_a_flood() -> None:
    turns = Turns()
    flood = [turns.next("loud", 1.0, 0.0) for _ in range(100)]
    quiet = turns.next("quiet", 1.0, 0.5)
    assert sum(turn < quiet for turn in flood) == 1


def test_two_that_flood_alike_take_turns() -> None:
    turns = Turns()
    both = sorted((turns.next(tenant, 1.0, 0.0), tenant) for _ in range(10) for tenant in "ab")
    tenants = [tenant for _, tenant in both]
    for end in range(2, 21):
        assert abs(tenants[:end].count("a") - tenants[:end].count("b")) <= 2


def test_nothing_is_kept_of_who_does_not_wait() -> None:
    turns = Turns()
    for _ in range(3):
        turns.next("a", 10.0, 0.0)
    for _ in range(3):
        turns.left("a")
    assert turns.next("a", 1.0, 0.0) == 0.0
    turns.left("a")
    assert not turns._next
    assert not turns._waiting
