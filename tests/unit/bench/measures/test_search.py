"""The highest rate that keeps a limit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measures.search import RateSearch

repeatable = settings(deadline=None, derandomize=True)


def tried(search: RateSearch, capacity: float) -> list[float]:
    """The rates tried on a server that keeps the limit up to ``capacity``."""
    rates = []
    while (rate := search.rate()) is not None:
        rates.append(rate)
        search.note(rate, rate <= capacity)
    return rates


def test_rates_double_until_one_fails_then_close_in_between() -> None:
    search = RateSearch(first=1.0, precision=0.5)
    assert tried(search, 5.0) == pytest.approx([1, 2, 4, 8, 32**0.5])
    assert (search.kept, search.broken) == pytest.approx((4, 32**0.5))


def test_rates_halve_until_one_is_kept() -> None:
    search = RateSearch(first=8.0, precision=0.5)
    assert tried(search, 1.5)[:4] == [8, 4, 2, 1]


@repeatable
@given(st.floats(1e-2, 1e4), st.floats(1e-2, 1e4), st.floats(0.01, 0.5))
def test_the_rate_found_is_as_near_as_was_asked(
    first: float, capacity: float, precision: float
) -> None:
    search = RateSearch(first, precision, most=100)
    tried(search, capacity)
    assert search.kept <= capacity < search.broken
    assert search.broken <= search.kept * (1 + precision) * (1 + 1e-9)


def test_what_was_known_before_is_not_forgotten() -> None:
    search = RateSearch(1.0)
    for rate, kept in ((4.0, True), (2.0, True), (8.0, False), (16.0, False)):
        search.note(rate, kept)
    assert (search.kept, search.broken) == (4.0, 8.0)


@pytest.mark.parametrize("capacity", [0.0, 1e30])
def test_a_search_ends_after_so_many_tries(capacity: float) -> None:
    assert len(tried(RateSearch(1.0, most=7), capacity)) == 7


def test_a_rate_that_tells_nothing_is_not_tried() -> None:
    search = RateSearch(first=1.0, least=0.3)
    rates = []
    while (rate := search.rate()) is not None:
        rates.append(rate)
        search.note(rate, kept=False)
    assert rates == [1.0, 0.5]
