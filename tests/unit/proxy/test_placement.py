"""Who goes where, case by case, and what holds in any case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxy.hints import Lean
from proxy.placement import Placement, Terms, Workers, place

NEVER = float("inf")
LEAD = 0.02


def workers(
    work: Sequence[float],
    given: Sequence[int] | None = None,
    against: Sequence[float] | None = None,
) -> Workers:
    number = len(work)
    return Workers(
        work=np.array(work, dtype=np.float64),
        given=np.array(given or [0] * number, dtype=np.int64),
        against=np.array(against or [0.0] * number, dtype=np.float64),
    )


def placed(
    seconds: Sequence[Sequence[float]],
    known: Workers,
    price: float = 1.0,
    most: int = 8,
    patience: float = NEVER,
    leanings: Sequence[Lean | None] | None = None,
) -> list[Placement]:
    terms = Terms(price, LEAD, most, patience)
    costs = np.array(seconds, dtype=np.float64)
    if leanings is None:
        return list(place(costs, known, terms))
    return list(place(costs, known, terms, leanings))


def test_a_prompt_goes_where_it_is_held() -> None:
    assert placed([[1.0, 0.1]], workers([0.0, 0.0])) == [(0, 1)]


def test_it_waits_for_who_holds_it_where_that_costs_less_than_computing() -> None:
    assert placed([[1.0, 0.1]], workers([0.0, 0.5])) == []
    assert placed([[1.0, 0.1]], workers([0.0, 2.0])) == [(0, 0)]


def test_computing_is_dearer_than_waiting_by_its_price() -> None:
    assert placed([[1.0, 0.1]], workers([0.0, 2.0]), price=10.0) == []
    assert placed([[1.0, 0.1]], workers([0.0, 9.5]), price=10.0) == [(0, 0)]


def test_it_goes_where_it_leans_to_if_that_costs_hardly_more() -> None:
    equal, lean = [[1.0, 1.0]], [Lean(1, 0.3)]
    assert placed(equal, workers([0.0, 0.0]), leanings=lean) == [(0, 1)]
    assert placed(equal, workers([0.0, 0.0], against=[0.0, 0.2]), leanings=lean) == [(0, 1)]
    assert placed(equal, workers([0.0, 0.0], against=[0.0, 0.4]), leanings=lean) == [(0, 0)]
    assert placed(equal, workers([0.0, 1.0]), leanings=lean) == [(0, 0)]
    assert placed(equal, workers([0.0, 0.0]), leanings=[None]) == [(0, 0)]


def test_no_leaning_makes_a_prompt_wait_beyond_its_patience() -> None:
    late = workers([0.0, 5.0])
    assert placed([[1.0, 1.0]], late, patience=2.0, leanings=[Lean(1, 99.0)]) == [(0, 0)]


def test_its_patience_ends() -> None:
    holder_is_busy = workers([0.0, 5.0])
    assert placed([[1.0, 0.1]], holder_is_busy, price=10.0, patience=4.1) == []
    assert placed([[1.0, 0.1]], holder_is_busy, price=10.0, patience=3.9) == [(0, 0)]


def test_who_computed_less_of_late_is_preferred() -> None:
    assert placed([[1.0, 1.0]], workers([0.0, 0.0], against=[0.3, 0.1])) == [(0, 1)]
    assert placed([[0.5, 1.0]], workers([0.0, 0.0], against=[0.3, 0.1])) == [(0, 0)]


def test_who_waits_counts_for_those_behind() -> None:
    """The second one would go where the first one waits, were it not for the first."""
    costs = [[9.0, 1.0], [2.0, 1.5]]
    assert placed(costs, workers([0.0, 0.1])) == [(1, 0)]
    assert placed(costs[1:], workers([0.0, 0.1])) == []


def test_a_worker_is_given_no_more_than_it_is_about_to_begin() -> None:
    assert len(placed([[1.0]] * 5, workers([0.0]))) == 1
    assert len(placed([[1.0]] * 5, workers([LEAD]))) == 1
    assert placed([[1.0]] * 5, workers([LEAD * 1.1])) == []


def test_several_small_ones_go_at_once_but_no_more_than_bounded() -> None:
    small = [[LEAD / 4]] * 20
    assert len(placed(small, workers([0.0]))) == 5
    assert len(placed(small, workers([0.0]), most=3)) == 3
    assert len(placed(small, workers([0.0], given=[2]), most=3)) == 1


amounts = st.floats(min_value=0.001, max_value=100.0)


@given(
    work=st.lists(st.sampled_from([0.0, LEAD, 0.5, 7.0]), min_size=1, max_size=6),
    data=st.data(),
    price=st.floats(min_value=1.0, max_value=20.0),
    patience=st.floats(min_value=0.0, max_value=50.0),
)
def test_bounds_hold_and_the_first_is_never_overtaken(
    work: list[float], data: st.DataObject, price: float, patience: float
) -> None:
    number = len(work)
    rows = data.draw(
        st.lists(st.lists(amounts, min_size=number, max_size=number), min_size=1, max_size=8)
    )
    given_before = data.draw(
        st.lists(st.integers(min_value=0, max_value=5), min_size=number, max_size=number)
    )
    known = workers(work, given_before)
    most = 4
    found = placed(rows, known, price, most, patience)
    for position in range(number):
        now = [one.row for one in found if one.position == position]
        before = sum(rows[row][position] for row in now[:-1])
        assert not now or work[position] + before <= LEAD
        assert not now or given_before[position] + len(now) <= most
    assert len({one.row for one in found}) == len(found)
    waits, costs = np.array(work), np.array(rows[0])
    fair = waits <= (waits + costs).min() + patience
    best = int(np.argmin(np.where(fair, waits + price * costs, NEVER)))
    free = work[best] <= LEAD and given_before[best] < most
    assert [one.position for one in found if one.row == 0] == ([best] if free else [])


def test_nothing_is_changed_that_was_handed_in() -> None:
    known = workers([0.0, 0.0])
    placed([[1.0, 1.0]] * 4, known)
    assert known.work.tolist() == [0.0, 0.0]
    assert known.given.tolist() == [0, 0]


def test_who_cannot_compute_it_is_not_given_it() -> None:
    assert placed([[NEVER, 0.1]], workers([0.0, 0.0])) == [(0, 1)]
    assert placed([[NEVER, 0.1]], workers([0.0, 5.0])) == []
    # One that nobody can compute stands in nobody's way.
    assert placed([[NEVER, NEVER], [0.1, 0.1]], workers([0.0, 0.0])) == [(1, 0)]
    assert placed([[NEVER, 1.0]], workers([0.0, 0.0]), patience=0.0) == [(0, 1)]
