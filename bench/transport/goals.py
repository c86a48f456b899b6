"""What is to be reached: a figure of one contender beside another's, in the same round.

Where a goal holds for several transports or sizes it has a candidate for each, and is as good as
the worst of them. Digests and CURVE are off but where they are what is compared; the fixed cost of
one block is that of the default, with digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.transport.case import BLOCK_BYTES, Case
from bench.transport.contender import (
    Contender,
    Gather,
    Kvferry,
    Memcpy,
    Mooncake,
    PingPong,
    RawSocket,
    Scheme,
)

ONE = Case(1)
SMALL = Case((1 << 20) // BLOCK_BYTES, "random")
BULK = (64 << 20) // BLOCK_BYTES
"""Blocks of the case that most comparisons are made with."""

LARGEST = Case((1 << 30) // BLOCK_BYTES, "random")
SHARED_OUT = 16_000
"""Blocks that one transfer or a hundred move: 10 MiB for each of the hundred, a short prompt's."""

_CONTIGUOUS_FROM = (16 << 20) // BLOCK_BYTES


@dataclass(frozen=True)
class Figure:
    """One contender's figure in one case."""

    contender: Contender
    case: Case


@dataclass(frozen=True)
class Candidate:
    """``over`` divided by ``under``; without ``under``, ``over`` itself, in microseconds."""

    over: Figure
    under: Figure | None = None

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What has to be measured for it."""
        return (self.over,) if self.under is None else (self.over, self.under)

    @property
    def label(self) -> str:
        """For people: what is divided by what."""
        told = f"{self.over.contender.name}, {self.over.case.label}"
        if self.under is None:
            return told
        other = []
        if self.under.contender != self.over.contender:
            other.append(self.under.contender.name)
        if self.under.case != self.over.case:
            other.append(self.under.case.label)
        return f"{told} / {', '.join(other)}"


Kind = Literal["at least", "at most", "told"]


@dataclass(frozen=True)
class Goal:
    """``of``: what figures are, bytes a second or seconds for each byte. No limit: only told."""

    metric: str
    of: Literal["rate", "time"]
    kind: Kind
    limit: float | None
    candidates: Sequence[Candidate]


def goals(schemes: Sequence[Scheme], sizes: Sequence[int]) -> list[Goal]:
    """Those of the chosen transports; ``sizes``: in blocks, all that are measured."""
    found = _shared_memory(sizes) if "shm" in schemes else []
    found += _tcp() if "zmq+tcp" in schemes else []
    found += _ipc() if "zmq+ipc" in schemes else []
    return [*found, *_fixed_costs(schemes), *_growth(schemes)]


def _shared_memory(sizes: Sequence[int]) -> list[Goal]:
    ours, random = Kvferry("shm"), Case(BULK, "random")
    bulk = [size for size in sizes if size >= _CONTIGUOUS_FROM] or [_CONTIGUOUS_FROM]
    copied = [_beside(ours, Memcpy(), Case(size)) for size in bulk]
    gathered = Candidate(Figure(ours, random), Figure(Gather(), Case(BULK, "gathered")))
    paged = _beside(ours, Mooncake(), random)
    checked = _beside(Kvferry("shm", digests=True), ours, random)
    return [
        Goal("shm_contiguous_vs_memcpy", "rate", "at least", 0.8, copied),
        Goal("shm_paged_vs_gather", "rate", "at least", 0.8, [gathered]),
        Goal("shm_paged_vs_mooncake", "rate", "at least", 2.0, [paged]),
        Goal("shm_digest_on_vs_off", "rate", "at least", 0.6, [checked]),
    ]


def _tcp() -> list[Goal]:
    ours, random = Kvferry("zmq+tcp"), Case(BULK, "random")
    raw = Candidate(Figure(ours, random), Figure(RawSocket("tcp"), Case(BULK)))
    checked = _beside(Kvferry("zmq+tcp", digests=True), ours, random)
    encrypted = _beside(Kvferry("zmq+tcp", curve=True), ours, random)
    return [
        Goal("tcp_vs_raw", "rate", "at least", 0.75, [raw]),
        Goal("tcp_digest_on_vs_off", "rate", "at least", 0.85, [checked]),
        Goal("tcp_curve_on_vs_off", "rate", "told", None, [encrypted]),
    ]


def _ipc() -> list[Goal]:
    ours = Figure(Kvferry("zmq+ipc"), Case(BULK, "random"))
    raw = Candidate(ours, Figure(RawSocket("unix"), Case(BULK)))
    return [Goal("ipc_vs_raw", "rate", "at least", 0.65, [raw])]


def _fixed_costs(schemes: Sequence[Scheme]) -> list[Goal]:
    ours = [Kvferry(scheme, digests=True) for scheme in schemes]
    alone = [Candidate(Figure(one, ONE)) for one in ours]
    beside = [
        _beside(one, PingPong("tcp" if one.scheme == "zmq+tcp" else "ipc"), ONE) for one in ours
    ]
    return [
        Goal("one_block_us", "time", "at most", 500.0, alone),
        Goal("one_block_vs_pingpong", "time", "at most", 3.0, beside),
    ]


def _growth(schemes: Sequence[Scheme]) -> list[Goal]:
    hundred, one = Case(SHARED_OUT, "random", 100), Case(SHARED_OUT, "random")

    def grown(over: Case, under: Case) -> list[Candidate]:
        ours = [Kvferry(scheme) for scheme in schemes]
        return [Candidate(Figure(each, over), Figure(each, under)) for each in ours]

    return [
        Goal("per_byte_1m_vs_1g", "time", "at most", 1.5, grown(SMALL, LARGEST)),
        Goal("hundred_vs_one", "rate", "at least", 0.9, grown(hundred, one)),
    ]


def _beside(ours: Contender, theirs: Contender, case: Case) -> Candidate:
    return Candidate(Figure(ours, case), Figure(theirs, case))
