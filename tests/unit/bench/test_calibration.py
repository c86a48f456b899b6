"""Drawn comparisons find what is there."""

from __future__ import annotations

import random

from bench.selftest.calibration import CalibrationSettings, detected, false_alarms

SETTINGS = CalibrationSettings(comparisons=40)


def pairs(ratio: float, spread: float, seed: int, count: int = 60) -> list[tuple[float, float]]:
    source = random.Random(seed)
    return [
        (40 * source.lognormvariate(0, spread), 40 * ratio * source.lognormvariate(0, spread))
        for _ in range(count)
    ]


def test_alike_runs_raise_few_alarms() -> None:
    assert false_alarms(pairs(1.0, 0.03, 1), SETTINGS) <= 0.15


def test_a_second_place_that_is_always_slower_is_an_alarm() -> None:
    assert false_alarms(pairs(1.5, 0.03, 1), SETTINGS) == 1.0


def test_a_tenth_is_found_and_nothing_is_not() -> None:
    assert detected(pairs(1.1, 0.03, 1), SETTINGS) >= 0.9
    assert detected(pairs(1.0, 0.03, 2), SETTINGS) <= 0.2
    assert detected(pairs(0.9, 0.03, 3), SETTINGS) == 0.0
