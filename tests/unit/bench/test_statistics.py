"""Statistics a verdict hangs on."""

import statistics as reference

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics import growth, median, percentile, round_ratios, supports_percentile

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(values)
def test_median_is_the_standard_one(numbers: list[float]) -> None:
    assert median(numbers) == pytest.approx(reference.median(numbers), abs=1e-6)


@given(values, st.floats(0, 100), st.floats(0, 100))
def test_percentiles_rise_with_rank_and_stay_within(
    numbers: list[float], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert percentile(numbers, low) <= percentile(numbers, high) + 1e-6
    assert min(numbers) - 1e-6 <= percentile(numbers, low) <= max(numbers) + 1e-6


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.integers(1, 99))
def test_percentile_is_the_inclusive_quantile(numbers: list[float], rank: int) -> None:
    expected = reference.quantiles(numbers, n=100, method="inclusive")[rank - 1]
    assert percentile(numbers, rank) == pytest.approx(expected, abs=1e-3)


def test_percentile_refuses_nothing_and_nonsense() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], 101)


def test_ratios_are_taken_within_rounds() -> None:
    # The machine was ten times slower in round 2: within rounds, that changes nothing.
    over = {1: 1.0, 2: 12.0, 3: 1.1}
    under = {1: 1.0, 2: 10.0, 3: 1.0}
    assert round_ratios(over, under) == pytest.approx({1: 1.0, 2: 1.2, 3: 1.1})


def test_a_round_only_one_system_has_gives_no_ratio() -> None:
    assert round_ratios({1: 2.0, 2: 2.0}, {2: 1.0, 3: 1.0}) == {2: 2.0}


def test_a_divisor_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="round 1"):
        round_ratios({1: 1.0}, {1: 0.0})


def test_growth_compares_the_two_ends_of_the_span() -> None:
    rising_then_flat = [(t, 100.0 + min(t, 60)) for t in range(0, 181, 2)]
    assert growth(rising_then_flat, span=120, window=20) == pytest.approx(0.0)
    rising = [(t, 100.0 + t) for t in range(0, 181, 2)]
    assert growth(rising, span=120, window=20) == pytest.approx(100 / 170)


def test_one_odd_sample_is_no_growth() -> None:
    flat = [(float(t), 100.0) for t in range(0, 181, 2)]
    flat[-1] = (180.0, 1000.0)
    assert growth(flat, span=120, window=20) == 0.0


def test_growth_needs_samples_that_reach_back() -> None:
    with pytest.raises(ValueError, match="not 120 s"):
        growth([(0.0, 1.0), (50.0, 1.0)], span=120, window=20)
    with pytest.raises(ValueError, match="two windows"):
        growth([], span=120, window=20)


def test_a_p99_wants_a_thousand_samples() -> None:
    assert supports_percentile(1000, 99)
    assert not supports_percentile(900, 99)
