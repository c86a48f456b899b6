"""Scales and their ticks."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reporting.axes import linear_axis, log_axis, tick_label

CALM = settings(max_examples=50, deadline=None)
ANY = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8)


@CALM
@given(ANY, st.booleans(), st.booleans())
def test_any_finite_values_lie_on_their_axis_in_order(
    values: list[float], zero: bool, snug: bool
) -> None:
    for axis in (linear_axis(values, from_zero=zero, snug=snug), log_axis(values)):
        assert math.isfinite(axis.low)
        assert axis.low < axis.high < math.inf
        shares = [axis.share(value) for value in sorted(values)]
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)
        assert 1 <= len(axis.ticks) <= 15
        marks = [at for at, _ in axis.ticks]
        assert marks == sorted(set(marks))


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 97.0], ["0", "20", "40", "60", "80", "100"]),
        ([0.0, 0.5], ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]),
        ([-3.0, 3.0], ["-4", "-2", "0", "2", "4"]),
        ([0.0, 400_000.0], ["0", "100k", "200k", "300k", "400k"]),
        ([0.0, 4e6], ["0", "1M", "2M", "3M", "4M"]),
        ([5.0], ["2", "3", "4", "5", "6", "7", "8"]),
        ([0.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_ticks_are_at_one_two_and_five(values: list[float], labels: list[str]) -> None:
    assert [label for _, label in linear_axis(values).ticks] == labels


def test_a_snug_axis_ends_with_its_values_and_an_axis_from_zero_begins_there() -> None:
    assert (linear_axis([3.0, 97.0], snug=True).low, linear_axis([3.0, 97.0]).low) == (3.0, 0.0)
    assert linear_axis([50.0, 53.0], from_zero=True).low == 0.0


def test_counts_have_no_halves() -> None:
    assert [label for _, label in linear_axis([0, 1], whole=True).ticks] == ["0", "1"]


def test_a_logarithmic_axis_has_equal_room_for_equal_factors() -> None:
    axis = log_axis([1.0, 10_000.0])
    assert axis.share(100.0) == pytest.approx(0.5)
    assert [label for _, label in axis.ticks] == ["1", "10", "100", "1,000", "10k"]


def test_values_that_have_no_logarithm_get_a_linear_axis() -> None:
    assert not log_axis([0.0, 10.0]).log
    assert not log_axis([-1.0, 10.0]).log


@pytest.mark.parametrize(
    ("value", "step", "label"),
    [(0.25, 0.05, "0.25"), (-0.0, 1.0, "0"), (2e-6, 1e-6, "2e-06"), (3e15, 1e15, "3e15")],
)
def test_a_label_has_the_decimals_its_step_needs(value: float, step: float, label: str) -> None:
    assert tick_label(value, step) == label
