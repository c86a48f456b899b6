"""Drawn comparisons find what is there."""

from __future__ import annotations

import random

from bench.selftest.calibration import CalibrationSettings, detected, false_alarms

SETTINGS = CalibrationSettings(comparisons=40)


def runs(median: float, spread: float, seed: int) -> list[float]:
    source = random.Random(seed)
    return [median * source.lognormvariate(0, spread) for _ in range(40)]


def test_alike_runs_raise_few_alarms() -> None:
    assert false_alarms(runs(40, 0.03, 1), SETTINGS) <= 0.15


def test_a_trend_that_only_one_side_has_is_an_alarm() -> None:
    # Neighbours of which the second is always much slower: orientation is drawn, so few alarms...
    uneven = [value * (1.5 if number % 2 else 1.0) for number, value in enumerate(runs(40, 0, 1))]
    assert false_alarms(uneven, SETTINGS) <= 0.2
    # ... but of A with B, always.
    assert detected(uneven[::2], uneven[1::2], SETTINGS) == 1.0


def test_a_tenth_is_found_and_nothing_is_not() -> None:
    a = runs(40, 0.03, 1)
    assert detected(a, [1.1 * value for value in runs(40, 0.03, 2)], SETTINGS) >= 0.9
    assert detected(a, runs(40, 0.03, 3), SETTINGS) <= 0.2
