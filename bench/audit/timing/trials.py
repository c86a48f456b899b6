"""Which trials are made in which order; the order follows from a seed, contents never do. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

from bench.audit import prompts

PROMPT_TOKENS = 256
SHARED = 0.95

Who = Literal["other", "same"]
"""Who probes: another tenant than the victim, or the victim itself (the control)."""


class Arm(NamedTuple):
    """Who probes, and whether the probe begins with the victim's prompt."""

    who: Who
    hit: bool


ARMS = (Arm("other", True), Arm("other", False), Arm("same", True), Arm("same", False))
EACH: Mapping[Who, int] = {"other": 6, "same": 2}
"""Trials of each arm in one block."""


class Trial(NamedTuple):
    """The victim's prompt, and the probe that is sent after it."""

    arm: Arm
    victim: list[int]
    probe: list[int]


def block(order: random.Random, each: Mapping[Who, int] = EACH) -> list[Trial]:
    """Trials of all arms, shuffled. The victim asks in every one, so that all else is alike."""
    arms = [arm for arm in ARMS for _ in range(each[arm.who])]
    order.shuffle(arms)
    return [_trial(arm) for arm in arms]


def _trial(arm: Arm) -> Trial:
    victim = prompts.fresh(PROMPT_TOKENS)
    shared = int(SHARED * PROMPT_TOKENS) if arm.hit else 0
    probe = prompts.extended(victim[:shared], PROMPT_TOKENS - shared)
    if arm.hit and probe[shared] == victim[shared]:  # the first that is to differ
        return _trial(arm)
    return Trial(arm, victim, probe)


def counted(trials: list[Trial]) -> Counter[Arm]:
    """How many there are of each arm."""
    return Counter(trial.arm for trial in trials)
