"""Trials, and what their times are judged to say: leaks are found, equal times are not a leak."""

from __future__ import annotations

import random

import pytest

from bench.audit.findings import Part, Verdict
from bench.audit.timing import judging, power
from bench.audit.timing.measuring import Times
from bench.audit.timing.part import enough
from bench.audit.timing.trials import ARMS, EACH, PROMPT_TOKENS, Arm, block, counted


def times(count: int, *, leak: float = 0.0, own: float = 0.1, seed: int = 1) -> Times:
    """As if another tenant's hits were sooner by ``leak`` seconds, and a tenant's ``own``."""
    source, found = random.Random(seed), Times()
    for arm in ARMS:
        gain = {"other": leak, "same": own}[arm.who] if arm.hit else 0.0
        number = count if arm.who == "other" else 60
        found.of[arm] = [0.2 - gain + source.gauss(0, 0.02) for _ in range(number)]
    found.asked = sum(map(len, found.of.values()))
    return found


def verdicts(part: Part) -> dict[str, Verdict]:
    return {row.name.split(",")[0]: row.verdict for row in part.findings}


def test_all_arms_are_in_a_block_and_probes_share_what_they_should() -> None:
    trials = block(random.Random(1))
    assert counted(trials) == {arm: EACH[arm.who] for arm in ARMS}
    for trial in trials:
        assert len(trial.victim) == len(trial.probe) == PROMPT_TOKENS
        shared = 243 if trial.arm.hit else 0
        assert trial.probe[:shared] == trial.victim[:shared]
        assert trial.probe[shared:] != trial.victim[shared:]
        if trial.arm.hit:
            assert trial.probe[243] != trial.victim[243]


def test_the_seed_gives_the_order_and_never_the_contents() -> None:
    first, again = block(random.Random(5)), block(random.Random(5))
    assert [trial.arm for trial in first] == [trial.arm for trial in again]
    assert [trial.arm for trial in first] != [trial.arm for trial in block(random.Random(6))]
    assert {tuple(trial.victim) for trial in first}.isdisjoint(tuple(t.victim) for t in again)


def test_equal_times_of_many_are_equal() -> None:
    part = judging.judged(times(power.needed(0.95)))
    assert verdicts(part) == {"control": "pass", "ks": "pass", "equivalence": "pass"}
    assert part.metrics["auc_cross_tenant"] == pytest.approx(0.5, abs=0.03)
    assert part.metrics["auc_same_tenant"] > 0.99


def test_equal_times_of_few_are_no_pass() -> None:
    part = judging.judged(times(120))
    assert verdicts(part) == {"control": "pass", "ks": "pass", "equivalence": "inconclusive"}
    assert part.verdict == "inconclusive"
    assert part.metrics["equivalence_power"] < 0.01


def test_a_leak_is_found() -> None:
    assert verdicts(judging.judged(times(120, leak=0.05))) == {
        "control": "pass",
        "ks": "fail",
        "equivalence": "fail",
    }


def test_a_small_leak_that_few_samples_let_pass_is_not_called_equal() -> None:
    part = judging.judged(times(120, leak=0.003, seed=3))
    assert verdicts(part)["ks"] == "pass"
    assert verdicts(part)["equivalence"] != "pass"
    assert verdicts(judging.judged(times(3000, leak=0.006)))["equivalence"] == "fail"


def test_without_its_control_nothing_is_proven() -> None:
    part = judging.judged(times(900, own=0.0))
    assert set(verdicts(part).values()) == {"invalid"}
    broken = times(900)
    broken.failed = 200
    assert verdicts(judging.judged(broken)) == {
        "control": "pass",
        "ks": "invalid",
        "equivalence": "invalid",
    }


def test_an_empty_arm_is_an_error() -> None:
    nothing = times(100)
    nothing.of[Arm("other", hit=True)] = []
    with pytest.raises(ValueError, match="empty"):
        judging.judged(nothing)


def test_when_it_is_enough() -> None:
    found = times(100)
    found.seconds = 100
    assert not enough(found, 180, None)
    assert not enough(found, 180, 101)
    assert enough(found, 180, 100)
    found.seconds = 180
    assert enough(found, 180, None)
    assert enough(found, 180, 101)
    found.of[Arm("same", hit=True)] = [0.1] * 19
    assert not enough(found, 180, None)
