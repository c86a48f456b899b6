"""Which workers serve a request: a pure function of what is known at that moment.

Simple on purpose: of the workers that are not clearly busier than the rest, the one that holds
the longest prefix of this prompt for this tenant; among equals, the least loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvstore.messages import Announce

LOAD_SLACK = 8
"""A longer prefix is worth this many more requests in flight; beyond it load decides."""


class Holding(Protocol):
    """Longest held prefix of a prompt on one worker, in blocks, by tier."""

    @property
    def gpu(self) -> int: ...
    @property
    def dram(self) -> int: ...


@dataclass(frozen=True)
class Prompt:
    """``tokens`` of a prompt in blocks of ``block_size``; both 0 where they are not known."""

    tokens: int
    block_size: int

    @property
    def full_blocks(self) -> int:
        """How many full blocks it has; only these are ever found again."""
        return self.tokens // self.block_size if self.block_size else 0


@dataclass(frozen=True)
class Fleet:
    """Live workers, and what is known of each by name: requests in flight, held prefixes."""

    prefill: Sequence[Announce]
    decode: Sequence[Announce]
    load: Mapping[str, int]
    held: Mapping[str, Holding]


@dataclass(frozen=True)
class Disaggregated:
    """``prefill`` computes what it lacks and ships, ``decode`` generates.

    ``held`` tokens of the prompt are thought to be on ``prefill`` already.
    """

    prefill: Announce
    decode: Announce
    held: int


@dataclass(frozen=True)
class DecodeOnly:
    """``decode`` does everything, because of ``reason``."""

    decode: Announce
    reason: str


@dataclass(frozen=True)
class Reject:
    """Nobody can serve this now."""

    reason: str


Plan = Disaggregated | DecodeOnly | Reject


def plan(prompt: Prompt, alone: str | None, fleet: Fleet) -> Plan:
    """Who serves ``prompt``; ``alone`` is why disaggregation is out of the question, if it is."""
    decode = best(fleet.decode, fleet, tiers=("gpu",))
    if decode is None:
        return Reject("no-decode-worker")
    if alone is not None:
        return DecodeOnly(decode, alone)
    if prompt.full_blocks < 1:
        return DecodeOnly(decode, "short")
    if _gpu_blocks(decode, fleet) >= max(1, prompt.full_blocks - 1):
        return DecodeOnly(decode, "decode-holds")
    ready = [worker for worker in fleet.prefill if worker.state == "ready"]
    matching = [worker for worker in ready if _fits(worker, decode)]
    tiers = ("gpu", "dram")
    prefill = best(matching, fleet, tiers)
    if prefill is None:
        return DecodeOnly(decode, "layout-mismatch" if ready else "no-prefill-worker")
    return Disaggregated(prefill, decode, _longest(prefill, fleet, tiers) * prompt.block_size)


def best(workers: Sequence[Announce], fleet: Fleet, tiers: Sequence[str] = ()) -> Announce | None:
    """The ready worker with the longest prefix in ``tiers`` among those not clearly busier."""
    ready = [worker for worker in workers if worker.state == "ready"]
    if not ready:
        return None
    loads = {worker.worker: fleet.load.get(worker.worker, 0) for worker in ready}
    limit = min(loads.values()) + LOAD_SLACK
    return min(
        (worker for worker in ready if loads[worker.worker] <= limit),
        key=lambda worker: (
            -_longest(worker, fleet, tiers),
            loads[worker.worker],
            worker.worker,
        ),
    )


def _longest(worker: Announce, fleet: Fleet, tiers: Sequence[str]) -> int:
    held = fleet.held.get(worker.worker)
    if held is None:
        return 0
    return max((held.gpu if tier == "gpu" else held.dram for tier in tiers), default=0)


def _gpu_blocks(worker: Announce, fleet: Fleet) -> int:
    held = fleet.held.get(worker.worker)
    return held.gpu if held else 0


def _fits(prefill: Announce, decode: Announce) -> bool:
    return (prefill.fingerprint, prefill.block_size) == (decode.fingerprint, decode.block_size)
