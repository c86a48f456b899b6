"""Is B slower than A, or is it noise?"""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measures import comparison
from bench.measures.comparison import (
    MANY_DEGREES,
    Comparison,
    compare,
    mean_interval,
    student_quantile,
    widened_tail,
)

repeatable = settings(deadline=None, derandomize=True)

TABLE = {
    # Degrees of freedom: quantiles at 0.95, 0.975 and 0.995, as any table has them.
    1: (6.3138, 12.7062, 63.6567),
    2: (2.9200, 4.3027, 9.9248),
    3: (2.3534, 3.1824, 5.8409),
    4: (2.1318, 2.7764, 4.6041),
    7: (1.8946, 2.3646, 3.4995),
    9: (1.8331, 2.2622, 3.2498),
    30: (1.6973, 2.0423, 2.7500),
    100: (1.6602, 1.9840, 2.6259),
    1000: (1.6464, 1.9623, 2.5808),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_students_quantiles_are_those_of_the_tables(freedom: int) -> None:
    found = tuple(student_quantile(probability, freedom) for probability in (0.95, 0.975, 0.995))
    assert found == pytest.approx(TABLE[freedom], abs=6e-5)
    assert student_quantile(0.05, freedom) == pytest.approx(-found[0])
    assert student_quantile(0.5, freedom) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("probability", [0.05, 0.6, 0.95, 0.975, 0.995])
def test_the_series_and_the_expansion_meet(probability: float) -> None:
    exact, expanded = (student_quantile(probability, MANY_DEGREES + more) for more in (0, 1))
    assert expanded == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("count", "tail"),
    # Hesterberg's table of adjusted percentiles has 0.0057 at 8 and 0.0086 at 10 for 0.025.
    [(8, 0.0057), (10, 0.0086), (1000, 0.0248)],
)
def test_few_pairs_read_percentiles_further_out(count: int, tail: float) -> None:
    assert widened_tail(count, 0.95) == pytest.approx(tail, abs=1.5e-4)


def pairs(
    count: int, source: random.Random, slowdown: float, noise: float = 0.04
) -> tuple[list[float], list[float]]:
    """Figures of A and B; both carry the machine's drift, each a noise of its own."""
    drift = [source.lognormvariate(4, 0.5) for _ in range(count)]
    a = [level * source.lognormvariate(0, noise) for level in drift]
    return a, [level * slowdown * source.lognormvariate(0, noise) for level in drift]


def found(count: int, slowdown: float, runs: int) -> dict[str, float]:
    """How often each finding came."""
    source = random.Random(f"{count}/{slowdown}")
    findings = [compare(*pairs(count, source, slowdown), seed=run).finding() for run in range(runs)]
    return {name: findings.count(name) / runs for name in set(findings)}


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples: enough for a calibration, and ten times as fast."""
    monkeypatch.setattr(comparison, "RESAMPLES", 1000)


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("count", [8, 10])
def test_false_alarms_are_about_as_rare_as_they_should_be(count: int) -> None:
    findings = found(count, 1.0, runs=400)
    # Nominal: 0.05. Of 400, with a spread of 0.011.
    assert 0.02 <= 1 - findings["no difference found"] <= 0.08
    # From both sides, or the interval is skewed.
    assert 0.005 <= findings["worse"] <= 0.05
    assert 0.005 <= findings["better"] <= 0.05


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("count", [8, 10])
def test_a_tenth_slower_or_faster_is_found(count: int) -> None:
    assert found(count, 1.1, runs=100)["worse"] >= 0.9
    assert found(count, 1 / 1.1, runs=100)["better"] >= 0.9


def test_the_ratio_is_of_b_over_a_with_the_machines_drift_left_out() -> None:
    a, b = pairs(10, random.Random(1), 1.2, noise=0.0)
    told = compare(a, b)
    assert (told.ratio, told.low, told.high) == pytest.approx((1.2, 1.2, 1.2))
    assert (told.pairs, told.confidence, told.finding()) == (10, 0.95, "worse")


def test_the_interval_is_about_students() -> None:
    a, b = pairs(10, random.Random(3), 1.0)
    logs = [math.log(one / other) for one, other in zip(b, a, strict=True)]
    half = 2.2622 * statistics.stdev(logs) / 10**0.5
    told = compare(a, b)
    assert math.log(told.high / told.ratio) == pytest.approx(half, rel=0.15)
    assert math.log(told.ratio / told.low) == pytest.approx(half, rel=0.15)


def test_more_confidence_takes_a_wider_interval() -> None:
    a, b = pairs(10, random.Random(1), 1.0)
    wide, narrow = compare(a, b, 0.99), compare(a, b, 0.8)
    assert wide.low < narrow.low <= narrow.ratio <= narrow.high < wide.high


def test_a_seed_decides_the_resamples() -> None:
    # One outlier: there the resamples reach further than Student's interval does.
    a, b = [1.0] * 8, [*(1 + number / 100 for number in range(7)), 20.0]
    assert compare(a, b, seed=1) == compare(a, b, seed=1)
    assert compare(a, b, seed=1) != compare(a, b, seed=2)


def test_the_interval_is_no_narrower_than_students() -> None:
    # Logarithms 0, 0, 0, 0, 1, 1, 1, 1: mean 0.5, deviation 0.5345, t of 7 degrees 2.3646.
    found = compare([1.0] * 8, [1.0] * 4 + [math.e] * 4)
    assert math.log(found.low) <= 0.5 - 2.3646 * 0.5345 / math.sqrt(8) + 1e-3
    assert math.log(found.high) >= 0.5 + 2.3646 * 0.5345 / math.sqrt(8) - 1e-3


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [
        (1.01, 1.2, "worse"),
        (0.8, 0.99, "better"),
        (0.9, 1.1, "no difference found"),
        (1.0, 1.1, "no difference found"),
        (0.9, 1.0, "no difference found"),
    ],
)
def test_a_finding_is_an_interval_beside_one(low: float, high: float, finding: str) -> None:
    assert Comparison(1.0, low, high, 0.95, 8).finding() == finding


figures = st.floats(1e-100, 1e100)


@settings(repeatable, max_examples=20)
@given(st.lists(st.tuples(figures, figures), min_size=8, max_size=9))
def test_any_figures_compare_and_the_ratio_lies_in_its_interval(
    told: list[tuple[float, float]],
) -> None:
    a, b = [one for one, _ in told], [other for _, other in told]
    compared = compare(a, b)
    assert 0 < compared.low <= compared.high < float("inf")


def test_the_same_figures_twice_are_no_difference() -> None:
    a = [float(number) for number in range(1, 11)]
    assert compare(a, a) == Comparison(1.0, 1.0, 1.0, 0.95, 10)


@pytest.mark.parametrize(
    ("a", "b", "confidence", "message"),
    [
        ([1.0] * 7, [1.0] * 7, 0.95, "8 pairs at least"),
        ([], [], 0.95, "8 pairs at least"),
        ([1.0] * 9, [1.0] * 8, 0.95, "as many of A as of B"),
        ([1.0] * 8, [0.0] * 8, 0.95, "finite figures above zero"),
        ([-1.0] * 8, [1.0] * 8, 0.95, "finite figures above zero"),
        ([1.0] * 8, [float("nan")] * 8, 0.95, "finite figures above zero"),
        ([float("inf")] * 8, [1.0] * 8, 0.95, "finite figures above zero"),
        ([1.0] * 8, [1.0] * 8, 95, "a confidence is between 0 and 1, not 95"),
        ([1.0] * 8, [1.0] * 8, 0.0, "a confidence is between 0 and 1, not 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    a: list[float], b: list[float], confidence: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(a, b, confidence)


def test_the_interval_of_a_mean_is_students() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    reach = 2.3646 * statistics.stdev(values) / math.sqrt(8)
    assert mean_interval(values) == pytest.approx((4.5, 4.5 - reach, 4.5 + reach), rel=1e-4)
    with pytest.raises(ValueError, match="8 rounds"):
        mean_interval(values[:7])
