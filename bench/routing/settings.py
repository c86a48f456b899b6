"""What is measured, how much of it, and on which cores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.errors import BenchError

TENANTS = 4
FEW = 8
MANY = 1000


class RoutingFailed(BenchError):
    """A router or its workers did not do what is measured."""


@dataclass(frozen=True)
class Amounts:
    """``seconds``: of one burst of ``concurrency`` clients. ``requests``: one by one, for a TTFT;
    ``novel``: likewise, of prompts never seen before. ``workers``: in both fleets, half of them
    for prefill; ``many`` 0: no larger fleet. ``small`` and ``long``: bytes of a prompt.
    """

    rounds: int = 12
    seconds: float = 3.0
    requests: int = 50
    novel: int = 8
    concurrency: int = 16
    workers: int = FEW
    many: int = MANY
    small: int = 1000
    long: int = 220_000
    seed: int = 0


@dataclass(frozen=True)
class RestartAmounts:
    """``rounds``: of killing the proxy. ``workers``: half of them for prefill, each with room for
    ``blocks``. ``clients`` talk in a closed loop, and think for ``think_ms`` on average between two
    questions, in ``conversations`` for each prefill worker of up to ``turns``. ``system`` and
    ``turn``: characters of what a tenant's conversations begin with, and of a question. Seconds:
    ``warm`` before the first round, ``before`` and ``after`` a kill, and of one ``window``.
    """

    rounds: int = 3
    workers: int = FEW
    blocks: int = 10_000
    clients: int = 16
    think_ms: float = 200.0
    conversations: int = 200
    turns: int = 8
    system: int = 800
    turn: int = 400
    warm: float = 60.0
    before: float = 10.0
    after: float = 20.0
    window: float = 1.0
    seed: int = 0


class Cores(NamedTuple):
    """Who computes where; no two alike where there are three."""

    router: int
    workers: int
    clients: int


@dataclass(frozen=True)
class Places:
    """``folder`` is private and short-lived; ``model`` has the tokenizer."""

    folder: Path
    model: Path
    cores: Cores


def cores() -> Cores:
    """Of those that this process may use now."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[1 % len(allowed)], allowed[2 if len(allowed) > 2 else -1])
