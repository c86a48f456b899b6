"""Who is looked at first: within a tenant by order, between tenants by shares."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.lines import Lines

KEYS = itertools.count()


@dataclass(eq=False)
class One:
    tenant: str
    order: float = 0.0
    least: float = 1.0
    key: int = field(default_factory=lambda: next(KEYS))
    size: float = 0.0

    @property
    def since(self) -> float:
        return self.order - self.size


def serve(lines: Lines[One], seconds: float, workers: int = 1, start: float = 0.0) -> Counter[str]:
    """Seconds of work that each tenant gets within ``seconds``, workers never idle."""
    got: Counter[str] = Counter()
    free = [start] * workers
    while (now := min(free)) < start + seconds and lines:
        one = lines.first(1, workers)[0]
        lines.given(one, workers, now)
        got[one.tenant] += one.least  # type: ignore[assignment]
        free[free.index(now)] = now + one.least
    return got


def test_one_tenants_come_in_their_order() -> None:
    lines: Lines[One] = Lines()
    ones = [One("a", order) for order in (3.0, 1.0, 2.0)]
    for one in ones:
        lines.enter(one)
    assert [one.order for one in lines.first(9, 1)] == [1.0, 2.0, 3.0]
    assert [one.order for one in lines.first(2, 1)] == [1.0, 2.0]


def test_a_tenants_order_holds_also_where_its_pace_delays_it() -> None:
    """One that came early and is long stands before one that came late and is short."""
    lines: Lines[One] = Lines()
    lines.given(One("a", 0.0, 9.0), 1, 10.0)
    long, short = One("a", 5.0, size=5.0), One("a", 5.5, size=0.1)
    others = [One("b", at / 2) for at in range(60)]
    for one in (long, short, *others):
        lines.enter(one)
    looked_at = lines.first(99, 1)
    assert looked_at.index(long) < looked_at.index(short)
    assert looked_at.index(long) > 5  # paced, for all that it came early


def test_tenants_that_ask_for_little_come_in_order_of_arrival() -> None:
    lines: Lines[One] = Lines()
    for at, tenant in enumerate("dbca"):
        lines.enter(One(tenant, float(at)))
    assert [one.tenant for one in lines.first(9, 1)] == list("dbca")


def test_a_flood_does_not_delay_another_tenant() -> None:
    lines: Lines[One] = Lines()
    for _ in range(1000):
        lines.enter(One("flood", 0.0))
    got = serve(lines, 100.0)
    assert got == {"flood": 100}
    late = One("b", 100.0)
    lines.enter(late)
    assert late in lines.first(2, 1)


@pytest.mark.parametrize("workers", [1, 4])
def test_two_floods_share_equally_however_long_their_prompts(workers: int) -> None:
    lines: Lines[One] = Lines()
    for _ in range(1000):
        lines.enter(One("long", 0.0, 10.0))
        lines.enter(One("short", 1.0, 1.0))
    got = serve(lines, 400.0 / workers, workers)
    assert abs(got["long"] - got["short"]) <= 40, got


def test_the_use_of_idle_time_is_not_paid_for_later() -> None:
    lines: Lines[One] = Lines()
    for _ in range(500):
        lines.enter(One("early", 0.0))
    serve(lines, 300.0)
    for _ in range(500):
        lines.enter(One("late", 300.0))
    got = serve(lines, 200.0, start=300.0)
    assert min(got["early"], got["late"]) >= 90, got


def test_before_one_more_come_a_tenants_own_and_the_shares_of_others_or_all() -> None:
    lines: Lines[One] = Lines()
    for _ in range(100):
        lines.enter(One("flood", 0.0))
    assert lines.before("flood") == 100.0
    assert lines.before("b") == 0.0
    one = One("b", 0.0)
    lines.enter(one)
    assert lines.before("b") == 2.0
    lines.leave(one)
    assert lines.before("b") == 0.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 9), st.booleans())))
def test_all_that_entered_and_did_not_leave_are_there_once(
    steps: list[tuple[str, float, bool]],
) -> None:
    lines: Lines[One] = Lines()
    there: list[One] = []
    for tenant, order, leaves in steps:
        if leaves and there:
            one = there.pop()
            lines.leave(one)
            lines.leave(one)
        else:
            there.append(One(tenant, order))
            lines.enter(there[-1])
        assert len(lines) == len(there)
        assert (
            sorted(map(id, lines.first(99, 2))) == sorted(map(id, there)) == sorted(map(id, lines))
        )
        assert all(lines.of(name) == sum(o.tenant == name for o in there) for name in "abc")
    for one in there:
        lines.leave(one)
    assert not lines._lines
    assert not lines._seconds
