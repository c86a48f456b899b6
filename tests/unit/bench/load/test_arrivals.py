"""When requests arrive under open-loop load."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load import arrivals
from bench.load.arrivals import BURSTIEST, SMOOTHEST, Arrivals
from bench.load.errors import BadLoad

KINDS: list[Arrivals] = ["poisson", "gamma", "constant"]

repeatable = settings(deadline=None, derandomize=True)


def first(
    count: int, kind: Arrivals, rate: float, seed: int = 1, burstiness: float = 1.0
) -> list[float]:
    return list(
        itertools.islice(arrivals.times(kind, rate, random.Random(seed), burstiness), count)
    )


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@repeatable
@given(
    st.sampled_from(KINDS),
    st.floats(1e-3, 1e6),
    st.floats(BURSTIEST, SMOOTHEST),
    st.integers(0, 2**32),
)
def test_times_ascend_from_the_beginning(
    kind: Arrivals, rate: float, burstiness: float, seed: int
) -> None:
    times = first(50, kind, rate, seed, burstiness)
    assert times[0] >= 0
    assert times == sorted(times)


def test_constant_arrivals_are_exact_however_many() -> None:
    times = first(100_001, "constant", 10.0)
    assert times[:3] == pytest.approx([0.0, 0.1, 0.2])
    assert times[-1] == pytest.approx(10_000.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_the_rate_is_kept_on_average(kind: Arrivals, rate: float) -> None:
    times = first(20_000, kind, rate, burstiness=2.0)
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize("burstiness", [0.05, 0.5, 1.0, 20.0])
def test_the_rate_holds_from_the_beginning_however_bursty(burstiness: float) -> None:
    # Many short runs: a process begun with an arrival would have too many, 9.5 more at 0.05.
    counts = [
        sum(1 for _ in itertools.takewhile(lambda at: at < 10, endless))
        for endless in (
            arrivals.times("gamma", 2.0, random.Random(seed), burstiness) for seed in range(4000)
        )
    ]
    assert statistics.fmean(counts) == pytest.approx(20, rel=0.06)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float) -> None:
    drawn = gaps(first(20_000, "gamma", 5.0, burstiness=burstiness))
    variation = statistics.stdev(drawn) / statistics.fmean(drawn)
    assert variation == pytest.approx(burstiness**-0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_poisson_and_gamma_of_shape_one_have_exponential_gaps(kind: Arrivals) -> None:
    drawn = sorted(gaps(first(10_001, kind, 1.0)))
    # Kolmogorov's distance to 1 - exp(-x): 1.63 / sqrt(n) is exceeded once in a hundred.
    distance = max(
        abs(1 - math.exp(-gap) - (rank + 0.5) / len(drawn)) for rank, gap in enumerate(drawn)
    )
    assert distance < 1.63 / len(drawn) ** 0.5


def test_poisson_arrivals_take_no_burstiness() -> None:
    assert first(20, "poisson", 1.0, burstiness=9.0) == first(20, "poisson", 1.0)


@repeatable
@given(st.sampled_from(KINDS), st.integers(0, 2**32))
def test_a_seed_decides_everything(kind: Arrivals, seed: int) -> None:
    assert first(10, kind, 3.0, seed) == first(10, kind, 3.0, seed)
    if kind != "constant":
        assert first(10, kind, 3.0, seed) != first(10, kind, 3.0, seed + 1)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(BadLoad, match=f"a rate is above 0 per second, not {rate:g}"):
        arrivals.times("poisson", rate, random.Random(0))


@pytest.mark.parametrize("burstiness", [0.0, -1.0, 1e-9, 1e9, float("inf"), float("nan")])
def test_a_burstiness_that_would_never_come_on_is_refused(burstiness: float) -> None:
    with pytest.raises(BadLoad, match=r"a burstiness is from 0\.0001 to 10000, not"):
        arrivals.times("gamma", 1.0, random.Random(0), burstiness)
