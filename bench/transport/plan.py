"""Which contender moves what, and in which order: interleaved, random, the same for one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby

import msgspec

from bench.transport.case import BLOCK_BYTES, Case, Order
from bench.transport.contender import (
    SCHEMES,
    Contender,
    Gather,
    Kvferry,
    Memcpy,
    Mooncake,
    Nixl,
    PingPong,
    RawSocket,
    Scheme,
)
from bench.transport.goals import BULK, SHARED_OUT, SMALL, Figure

PEER_LARGEST = (256 << 20) // BLOCK_BYTES
"""Blocks that each of a peer's processes holds at most: theirs come on top of ours."""

_FACTOR = 4
_TRANSFERS = (1, 10, 100)


class Plan(msgspec.Struct, frozen=True):
    """``schemes``: which of our transports. ``largest``: bytes of the largest case, at least one
    block. ``seed`` decides the order. ``bound``: our two processes to a core each; without it a raw
    socket is up to twice as fast, since the two ends may meet on one core."""

    schemes: tuple[Scheme, ...] = SCHEMES
    rounds: int = 12
    largest: int = 1 << 30
    seed: int = 0
    bound: bool = False

    @property
    def held(self) -> int:
        """Blocks that each of our processes holds."""
        return self.largest // BLOCK_BYTES

    @property
    def sizes(self) -> list[int]:
        """Blocks of the cases, from one to the largest, each four times the one before."""
        found = [1]
        while found[-1] * _FACTOR <= self.held:
            found.append(found[-1] * _FACTOR)
        return found

    def figures(self) -> list[Figure]:
        """All that is measured in a round."""
        found = [*self._limits(), *self._peers()]
        for scheme in self.schemes:
            found += self._transport(scheme)
        return found

    def shuffled(self, figures: Sequence[Figure], number: int) -> list[Figure]:
        """In the order of one round: what is alike in size is measured close together in time."""
        source = random.Random(f"{self.seed}/{number}")
        ordered = sorted(figures, key=lambda figure: figure.case.size)
        groups = [list(group) for _, group in groupby(ordered, lambda figure: figure.case.size)]
        source.shuffle(groups)
        for group in groups:
            source.shuffle(group)
        return [figure for group in groups for figure in group]

    def _limits(self) -> list[Figure]:
        found = self._over_sizes(Memcpy(), "contiguous")
        found += [Figure(Gather(), Case(size, "gathered")) for size in self.sizes[1:]]
        if "zmq+tcp" in self.schemes:
            found += self._over_sizes(RawSocket("tcp"), "contiguous")
            found.append(Figure(PingPong("tcp"), Case(1)))
        if {"shm", "zmq+ipc"} & set(self.schemes):
            found += self._over_sizes(RawSocket("unix"), "contiguous")
            found.append(Figure(PingPong("ipc"), Case(1)))
        return found

    def _peers(self) -> list[Figure]:
        found = []
        for peer in (Mooncake(), Nixl()):
            found += self._over_sizes(peer, "contiguous", "random")
        return [figure for figure in found if figure.case.blocks <= PEER_LARGEST]

    def _transport(self, scheme: Scheme) -> list[Figure]:
        found = self._over_sizes(Kvferry(scheme), "contiguous", "random")
        if self.held >= SHARED_OUT:
            shared_out = [Case(SHARED_OUT, "random", count) for count in _TRANSFERS]
            found += [Figure(Kvferry(scheme), case) for case in shared_out]
        curves = (False, True) if scheme == "zmq+tcp" else (False,)
        for curve in curves:
            for digests in (False, True):
                if curve or digests:
                    switched = Kvferry(scheme, digests=digests, curve=curve)
                    found += [Figure(switched, case) for case in self._switched()]
        return found

    def _switched(self) -> list[Case]:
        """Where the cost of digests and of CURVE is told."""
        wanted = (Case(1), SMALL, Case(BULK, "random"))
        return [case for case in wanted if case.blocks <= self.held]

    def _over_sizes(self, contender: Contender, *orders: Order) -> list[Figure]:
        return [
            Figure(contender, Case(size, order))
            for size in self.sizes
            for order in orders
            if size > 1 or order == "contiguous"
        ]
