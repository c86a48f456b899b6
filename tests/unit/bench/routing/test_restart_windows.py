"""Hit ratios of windows, how soon one is back, and what is counted for them."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from bench.routing.holdings import Holding
from bench.routing.restart_report import judgement, metrics, verdict
from bench.routing.restarting import Restarts, Round
from bench.routing.settings import RestartAmounts
from bench.routing.tally import Counts, Tally, found
from bench.routing.windows import LEAST_PROMPTS, seconds_until, window, windows

AMOUNTS = RestartAmounts()
BLOCKS = [bytes([at]) * 16 for at in range(8)]


def samples(*ratios: float, prompts: int = LEAST_PROMPTS) -> list[Counts]:
    """One a second; of each second's tokens that part was cached, and half of it found blindly."""
    told, tokens, cached = [Counts(0.0, 0, 0, 0, 0, {})], 0, 0
    for at, ratio in enumerate(ratios, start=1):
        tokens += 1000
        cached += round(ratio * 1000)
        told.append(Counts(float(at), at * prompts, tokens, cached, cached // 2, {}))
    return told


def test_a_window_is_what_was_computed_in_it() -> None:
    found = window(samples(0.0, 0.8, 0.4, 0.0), 1.0, 3.5)
    assert found is not None
    assert (found.first.at, found.last.at) == (1.0, 3.0)
    assert found.ratio == pytest.approx(0.6)
    assert found.blind == pytest.approx(0.3)
    assert window(samples(0.5), 0.5, 1.5) is None


def test_the_first_window_that_is_good_enough_counts_to_its_end() -> None:
    told = samples(0.9, 0.9, 0.1, 0.5, 0.8, 0.9)
    assert seconds_until(told, 2.0, 1.0, 0.79) == 3.0
    assert seconds_until(told, 2.0, 2.0, 0.79) == 4.0
    assert seconds_until(told, 2.0, 1.0, 0.95) is None


def test_what_was_before_is_in_no_window() -> None:
    told = samples(0.9, 0.1, 0.9)
    assert seconds_until(told, 0.5, 1.0, 0.8) == 2.5
    assert [one.first.at for one in windows(told, 0.5, 1.0)] == [1.0, 2.0]


def test_few_prompts_make_no_window_but_a_longer_one() -> None:
    told = samples(1.0, 0.0, 0.9, 0.9, prompts=LEAST_PROMPTS // 2)
    assert [one.ratio for one in windows(told, 0.0, 1.0)] == [0.5, 0.45, 0.9]


def test_blind_steering_finds_what_chance_put_there() -> None:
    class Second(random.Random):
        def choice(self, seq: Any) -> Any:
            return seq[1]

    tally = Tally([Holding(100), Holding(100)], Second(0))
    for _ in range(2):
        tally.computed(BLOCKS, 130, 64, 16)
    tally.replayed("proxy-1", 7.0)
    tally.replayed("proxy-1", 8.0)
    told = msgspec.json.decode(tally.told(9.0), type=Counts)
    assert told == Counts(9.0, 2, 260, 128, 128, {"proxy-1": 7.0})
    assert tally.shadows[0].held(BLOCKS) == 0


def test_held_is_counted_to_the_first_hole_and_never_the_last_token() -> None:
    holding = Holding(100)
    holding.keep([BLOCKS[0], BLOCKS[1], BLOCKS[3]])
    assert found(holding, BLOCKS[:4], 64, 16) == 32
    holding.keep(BLOCKS[:4])
    assert found(holding, BLOCKS[:4], 64, 16) == 63
    assert found(holding, BLOCKS[:4], 70, 16) == 64


def taken(*back: float | None, blind: float = 0.4, after: float = 0.78) -> Restarts:
    rounds = [Round(0.8, after, blind, 0.9, 1.0, one) for one in back]
    return Restarts(rounds=rounds, answered=10)


def test_the_slowest_round_is_judged() -> None:
    found = taken(1.0, 9.0, 2.0)
    judged = judgement(found, AMOUNTS)
    assert (judged.value, judged.outcome) == (9.0, "kept")
    told = metrics(judged, found, AMOUNTS)
    assert told["restart_seconds_to_95"] == 9.0
    assert told["median_restart_seconds_to_95"] == 2.0
    assert told["hit_ratio_after_vs_before"] == pytest.approx(0.975)
    assert verdict(judged, found).valid


def test_one_that_does_not_come_back_is_short() -> None:
    found = taken(1.0, None)
    judged = judgement(found, AMOUNTS)
    assert (judged.value, judged.outcome) == (AMOUNTS.after, "short")
    assert not verdict(judged, found).valid


def test_hits_that_need_no_steering_prove_nothing() -> None:
    found = taken(1.0, blind=0.7)
    told = verdict(judgement(found, AMOUNTS), found)
    assert not told.valid
    assert "chosen at random" in told.reasons[0]


def test_one_good_window_is_not_enough() -> None:
    found = taken(1.0, after=0.6)
    told = verdict(judgement(found, AMOUNTS), found)
    assert not told.valid
    assert "rounds [1] did not come back" in told.reasons[0]
