"""Rank statistics against values of scipy 1.16, closed forms, and each other."""

from __future__ import annotations

import math
import random

import pytest

from bench.audit.timing import power
from bench.audit.timing.ranks import auc, ks_less, shift

A = [0.095, 1.25, -0.931, 0.992, -0.259, -0.262, 1.9, 0.158, -0.043, 0.729, 1.127, -0.031]
B = [1.188, -0.374, 0.233, 0.162, -0.732, -0.909, -1.027, 0.361, 0.428, 0.28, 0.669, -0.736]
B += [0.521, 0.838, 1.351]


def normal(seed: int, *, count: int, mean: float) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(mean, 1) for _ in range(count)]


def test_ks_and_auc_are_scipys() -> None:
    # ks_2samp(alternative="greater", method="exact"), and mannwhitneyu's statistic
    found = ks_less(A, B)
    assert found.distance == 0.25
    assert found.p == pytest.approx(0.3858699391274435)
    assert ks_less(B, A).p == pytest.approx(0.3858699391274435)
    assert auc(A, B, 0.95).value == pytest.approx(0.4555555555555556)
    source = random.Random(50)
    hits = [source.gauss(0, 1) for _ in range(50)]
    misses = [source.gauss(0.3, 1) for _ in range(50)]
    found = ks_less(hits, misses)
    assert found.distance == pytest.approx(0.34)
    assert found.p == pytest.approx(0.0029208890846870693)
    assert auc(hits, misses, 0.95).value == pytest.approx(0.6676)


def test_ks_of_wholly_apart_samples_is_one_order_of_all() -> None:
    low, high = [float(at) for at in range(20)], [float(at) for at in range(100, 130)]
    assert ks_less(low, high).p == pytest.approx(1 / math.comb(50, 20))
    assert ks_less(high, low).p == 1.0


def test_many_samples_take_the_limit_and_it_is_near_the_exact_p() -> None:
    few = ks_less(normal(1, count=1999, mean=0), normal(2, count=1999, mean=0.1))
    limit = math.exp(-2 * few.distance**2 * 1999 / 2)
    assert few.p == pytest.approx(limit, rel=0.2)
    many = ks_less(normal(1, count=2001, mean=0), normal(2, count=2001, mean=0.1))
    assert many.p == pytest.approx(math.exp(-2 * many.distance**2 * 2001 / 2))


def test_p_is_below_a_tenth_in_a_tenth_of_equal_pairs() -> None:
    found = [
        ks_less(normal(seed, count=60, mean=0), normal(seed + 500, count=60, mean=0)).p < 0.1
        for seed in range(500)
    ]
    assert 0.05 < sum(found) / 500 < 0.12


def test_intervals_cover_what_is_true_as_often_as_they_say() -> None:
    true = 0.5 * (1 + math.erf(0.5 / 2))  # P(X < Y), Y half a deviation above X
    covered_auc = covered_shift = 0
    for seed in range(300):
        low, high = normal(seed, count=40, mean=0), normal(seed + 900, count=50, mean=0.5)
        found, moved = auc(low, high, 0.9), shift(low, high, 0.9)
        assert found.low < found.value < found.high
        covered_auc += found.low < true < found.high
        covered_shift += moved.low < 0.5 < moved.high
    assert 0.85 < covered_auc / 300 < 0.95
    assert 0.85 < covered_shift / 300 < 0.95


def test_the_shift_is_the_median_of_differences() -> None:
    assert shift([1, 2, 3], [11, 12, 13], 0.95).value == 10
    assert shift([0, 0, 0], [1, 5, 9], 0.5).value == 5


def test_ties_count_half() -> None:
    assert auc([1, 1], [1, 1], 0.95).value == 0.5
    assert auc([1, 2], [2, 3], 0.95).value == pytest.approx(0.875)


@pytest.mark.parametrize(
    "compare", [ks_less, lambda a, b: auc(a, b, 0.9), lambda a, b: shift(a, b, 0.9)]
)
def test_nothing_is_compared_with_nothing(compare: object) -> None:
    assert callable(compare)
    with pytest.raises(ValueError, match="empty"):
        compare([], [1.0])


def test_sample_sizes_are_those_of_the_literature() -> None:
    # margin 0.05: 571 of each kind at alpha 0.05, 868 at 0.01, both for a power of 0.8
    assert power.needed(0.8) == 571
    assert power.needed(0.8, alpha=0.01) == 868
    assert power.power_of(571) == pytest.approx(0.8, abs=0.002)
    assert power.power_of(100) == 0
    assert power.power_of(0) == 0


def test_the_power_is_how_often_equal_ones_are_found_equal() -> None:
    count = 600
    found = 0
    for seed in range(200):
        low, high = normal(seed, count=count, mean=0), normal(seed + 4000, count=count, mean=0)
        interval = auc(low, high, 0.9)
        found += interval.low > 0.45 and interval.high < 0.55
    assert found / 200 == pytest.approx(power.power_of(count), abs=0.07)
