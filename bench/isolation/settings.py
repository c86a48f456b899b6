"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.errors import BenchError
from bench.routing.settings import FEW


class IsolationFailed(BenchError):
    """What is compared is not there, or does not do what is measured."""


@dataclass(frozen=True)
class Amounts:
    """``rounds``: of starting both proxies, and of ``turns`` bursts through either with each kind
    of prompt. ``seconds``: of one burst of ``concurrency`` clients. ``workers``: half of them for
    prefill. ``small`` and ``long``: bytes of a prompt. ``replayed`` turns of conversations are made
    up for caches of ``blocks``, where there is no trace.
    """

    rounds: int = 40
    turns: int = 4
    seconds: float = 0.8
    concurrency: int = 16
    workers: int = FEW
    small: int = 1000
    long: int = 220_000
    replayed: int = 4000
    blocks: int = 4000
    seed: int = 0
