"""Curves are found again from what they make, and never predict less than nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.curves import (
    FEWEST_SAMPLES,
    RECENT_SAMPLES,
    PrefillCurve,
    RecentCurve,
    Sample,
    fit,
    spread,
)

LENGTHS = (32, 100, 400, 1500, 6000, 20_000)


def measured(curve: PrefillCurve, jitter: float = 0.0) -> list[Sample]:
    source = random.Random(0)
    return [
        Sample(
            new,
            held,
            curve.seconds(float(new), float(held)) * source.lognormvariate(0.0, jitter),
        )
        for new in LENGTHS
        for held in (0, 500, 5000)
    ]


terms = st.floats(min_value=0.0, max_value=1.0)


@given(start=terms, token=terms, pair=terms)
def test_a_curve_is_found_again(start: float, token: float, pair: float) -> None:
    curve = PrefillCurve(0.001 + start, token * 1e-4, pair * 1e-8)
    found = fit(measured(curve))
    for one in measured(curve):
        assert found.seconds(float(one.new), float(one.held)) == pytest.approx(
            one.seconds, rel=1e-6
        )


def test_jitter_moves_it_little_and_is_told() -> None:
    curve = PrefillCurve(0.01, 5e-5, 1e-9)
    samples = measured(curve, jitter=0.1)
    found = fit(samples)
    assert found.seconds(2000.0, 0.0) == pytest.approx(curve.seconds(2000.0, 0.0), rel=0.15)
    assert 0.05 < spread(found, samples) < 0.2


def test_no_term_is_negative() -> None:
    """Times that fall with length, as no engine's do."""
    samples = [Sample(new, 0, 1.0 / new) for new in LENGTHS]
    found = fit(samples)
    assert min(found.start, found.token, found.pair) >= 0


def test_too_few_samples_are_refused() -> None:
    samples = measured(PrefillCurve(0.01, 1e-5, 0.0))[: FEWEST_SAMPLES - 1]
    with pytest.raises(ValueError, match="too few"):
        fit(samples)


def test_many_prompts_at_once_are_as_each_alone() -> None:
    curve = PrefillCurve(0.01, 5e-5, 1e-9)
    new, held = np.array([10.0, 2000.0]), np.array([0.0, 512.0])
    alone = [curve.seconds(10.0, 0.0), curve.seconds(2000.0, 512.0)]
    assert curve.seconds(new, held).tolist() == pytest.approx(alone)


GUESS = PrefillCurve(0.01, 5e-5, 0.0)
TRUE = PrefillCurve(0.07, 3e-3, 2e-6)


def test_what_was_measured_replaces_the_guess() -> None:
    recent = RecentCurve(GUESS)
    assert recent.curve == GUESS
    for _ in range(4):
        for sample in measured(TRUE, jitter=0.1):
            recent.add(sample)
    for sample in measured(TRUE):
        assert recent.curve.seconds(sample.new, sample.held) == pytest.approx(
            sample.seconds, rel=0.25
        )


def test_prompts_of_one_length_still_make_longer_ones_slower() -> None:
    recent = RecentCurve(GUESS)
    for _ in range(100):
        recent.add(Sample(500, 0, 1.0))
    assert recent.curve.seconds(500, 0) == pytest.approx(1.0, rel=0.05)
    assert recent.curve.seconds(5000, 0) > 5.0


def test_a_worker_that_became_faster_is_known_to_be() -> None:
    recent = RecentCurve(GUESS)
    for _ in range(RECENT_SAMPLES):
        recent.add(Sample(1000, 0, 4.0))
    for _ in range(RECENT_SAMPLES):
        recent.add(Sample(1000, 0, 1.0))
    assert recent.curve.seconds(1000, 0) == pytest.approx(1.0, rel=0.05)


def test_a_lie_among_honest_samples_does_little() -> None:
    recent = RecentCurve(GUESS)
    for number in range(60):
        recent.add(Sample(1000 + number, 0, GUESS.seconds(1000 + number, 0)))
    for lie in (1e-6, 86_400.0):
        recent.add(Sample(1000, 0, lie))
        for _ in range(8):
            recent.add(Sample(2000, 0, GUESS.seconds(2000, 0)))
        assert recent.curve.seconds(8000, 0) == pytest.approx(GUESS.seconds(8000, 0), rel=0.5)
