"""Whether a server takes in less than it is asked."""

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measures.saturation import (
    LEAST_SAMPLES,
    LEAST_SECONDS,
    Series,
    grows,
    piles_up,
    saturated,
)

repeatable = settings(deadline=None, derandomize=True)


def series(
    seconds: float = 60.0, begin: float = 10.0, end: float = 10.0, noise: float = 0.3, seed: int = 0
) -> Series:
    """Two samples a second on a line from ``begin`` to ``end``, with noise in proportion."""
    source = random.Random(seed)
    count = round(seconds * 2) + 1
    return [
        (
            seconds * number / (count - 1),
            (begin + (end - begin) * number / (count - 1)) * source.lognormvariate(0, noise),
        )
        for number in range(count)
    ]


def queue(rate: float, servers: int, seconds: float, seed: int) -> tuple[Series, Series]:
    """In flight twice a second, and TTFT by intended time of what is answered by the end.

    Requests come at random and each occupies one of ``servers`` for a second on average.
    """
    source = random.Random(seed)
    free, at = [0.0] * servers, 0.0
    asked: list[tuple[float, float, float]] = []
    while (at := at + source.expovariate(rate)) < seconds:
        begun = max(at, heapq.heappop(free))
        ended = begun + source.expovariate(1.0)
        heapq.heappush(free, ended)
        asked.append((at, begun, ended))
    moments = [number / 2 for number in range(round(seconds * 2) + 1)]
    in_flight = [
        (moment, float(sum(came <= moment < ended for came, _, ended in asked)))
        for moment in moments
    ]
    return in_flight, [(came, begun - came) for came, begun, ended in asked if ended <= seconds]


@pytest.mark.parametrize(("rate", "servers"), [(0.5, 1), (0.7, 1), (5.6, 8), (7.2, 8), (60.0, 80)])
def test_a_server_that_keeps_up_is_not_saturated(rate: float, servers: int) -> None:
    # A queue wanders; a regression that takes its samples for independent finds growth in a third.
    alarms = sum(saturated(*queue(rate, servers, 60, seed)) for seed in range(40))
    assert alarms <= 1


@pytest.mark.parametrize(("rate", "servers"), [(2.0, 1), (10.4, 8), (16.0, 8), (80.0, 8)])
def test_a_server_that_does_not_keep_up_is_saturated(rate: float, servers: int) -> None:
    found = sum(saturated(*queue(rate, servers, 60, seed)) for seed in range(20))
    assert found >= 17


def test_noise_is_rarely_taken_for_growth() -> None:
    assert not any(grows(series(seed=seed)) for seed in range(40))
    assert not any(saturated(series(noise=1, seed=seed), series(noise=1, seed=seed + 1000))
                   for seed in range(1, 60))  # fmt: skip


def test_what_grows_saturates_even_under_noise() -> None:
    for seed in range(20):
        assert grows(series(begin=5, end=50, seed=seed))
    assert saturated(series(begin=5, end=50, seed=1), series(begin=0.1, end=3, seed=2))


def test_one_of_both_is_not_enough() -> None:
    growing, steady = series(begin=5, end=50), series()
    assert not saturated(growing, steady)
    assert not saturated(steady, growing)


def test_a_trifle_is_no_growth_however_sure() -> None:
    assert not grows(series(begin=10, end=14, noise=0.001))
    assert grows(series(begin=10, end=16, noise=0.001))


def test_growth_that_one_odd_sample_makes_is_not_sure() -> None:
    # The fitted line doubles all the same.
    assert not grows([(float(at), 20.0 if at == 12 else 1.0) for at in range(20)])


def test_what_shrinks_does_not_grow() -> None:
    assert not grows(series(begin=50, end=5))


def test_a_level_that_begins_at_nothing_grows() -> None:
    # The fitted beginning may be zero or less; anything would be a multiple of that.
    assert grows(series(begin=0, end=50))


def test_requests_pile_up_where_they_grow_by_more_than_chance() -> None:
    def level(begin: float, end: float) -> Series:
        return [(float(at), begin if at < 40 else end) for at in range(60)]

    # 400 answers: chance alone makes 30.
    assert not piles_up(level(10, 40), 400)
    assert piles_up(level(10, 42), 400)
    assert not piles_up(level(10, 42), 4000)
    assert not piles_up(level(42, 10), 0)
    assert not piles_up(level(10, 10), 0)


def test_the_beginning_of_a_run_is_no_pile() -> None:
    filling = [(float(at), min(100.0, at * 10.0)) for at in range(60)]
    assert not piles_up(filling, 400)


def test_short_looks_say_nothing() -> None:
    growing = [(number * LEAST_SECONDS / 100, 1.0 + number) for number in range(101)]
    assert saturated(growing, growing)
    assert not saturated(growing[:-1], growing)
    few = [(number * 10.0, 1.0 + 10 * number) for number in range(LEAST_SAMPLES)]
    assert saturated(few, few)
    assert not saturated(few[1:], few)
    assert not saturated(few, few[1:])
    assert not saturated([], [])
    assert not grows([])
    assert not grows([(0.0, float(number)) for number in range(100)])


def test_a_server_far_behind_has_answered_only_the_first_requests() -> None:
    # 30 s long, asked for ten times what it can: the answers are to the first 3 s.
    in_flight = [(at / 2, 9.0 * at / 2) for at in range(61)]
    assert saturated(in_flight, [(at / 10, 0.9 * at) for at in range(30)])


@repeatable
@given(
    st.floats(0, 1e9),
    st.integers(0, 200),
    st.floats(0, 1e5),
    st.floats(0, 10),
)
def test_a_constant_never_grows_nor_crashes(
    value: float, count: int, begin: float, step: float
) -> None:
    assert not grows([(begin + number * step, value) for number in range(count)])


@repeatable
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9)), max_size=60).map(sorted))
def test_any_series_has_an_answer(told: Series) -> None:
    assert saturated(told, told) in (True, False)


@pytest.mark.timeout(20)
def test_a_long_run_is_looked_at_as_quickly_as_a_short_one() -> None:
    # Quadratic, or linear in degrees of freedom 80 times over, this would take minutes.
    source = random.Random(0)
    assert not grows([(number / 1000, source.random()) for number in range(200_000)])
