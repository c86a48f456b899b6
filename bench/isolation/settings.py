"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.errors import BenchError
from bench.routing.settings import FEW


class IsolationFailed(BenchError):
    """What is compared is not there, or does not do what is measured."""


@dataclass(frozen=True)
class Amounts:
    """``rounds``: of a burst through both proxies with either kind of prompt. ``seconds``: of one
    burst of ``concurrency`` clients. ``workers``: half of them for prefill. ``small`` and ``long``:
    bytes of a prompt. ``turns`` of conversations are made up for caches of ``blocks``, where there
    is no trace.
    """

    rounds: int = 24
    seconds: float = 2.0
    concurrency: int = 16
    workers: int = FEW
    small: int = 1000
    long: int = 220_000
    turns: int = 4000
    blocks: int = 4000
    seed: int = 0
