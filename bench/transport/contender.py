"""Who moves the pages: kvferry's transports, the machine's limits, other engines.

A contender is a value that names it and says how it is set; its two ends are in
:mod:`bench.transport.ends`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Scheme = Literal["shm", "zmq+ipc", "zmq+tcp"]
SCHEMES: tuple[Scheme, ...] = ("shm", "zmq+ipc", "zmq+tcp")


class _Contender(msgspec.Struct, frozen=True, tag=True):
    """Base of all."""


class Kvferry(_Contender, frozen=True):
    """One of our transports. ``curve``: encrypted, of meaning with ``zmq+tcp`` alone.

    ``digests``: of each block; where it crosses TCP in the clear, a keyed MAC.
    """

    scheme: Scheme
    digests: bool = False
    curve: bool = False

    @property
    def name(self) -> str:
        """Scheme and whatever is switched on."""
        parts = [self.scheme, *(["CURVE"] * self.curve), *(["digests"] * self.digests)]
        return ", ".join(parts)


class Memcpy(_Contender, frozen=True):
    """One copy between two arrays of one process."""

    name: str = "memcpy"


class Gather(_Contender, frozen=True):
    """Random pages taken into contiguous memory by numpy, in one process."""

    name: str = "gather"


class RawSocket(_Contender, frozen=True):
    """``sendall`` and ``recv_into``, nothing else: no pages, no message, no check."""

    family: Literal["tcp", "unix"]

    @property
    def name(self) -> str:
        """For people."""
        return f"raw {self.family}"


class PingPong(_Contender, frozen=True):
    """One block to the other process and back by ZeroMQ: what a round trip costs."""

    scheme: Literal["tcp", "ipc"]

    @property
    def name(self) -> str:
        """For people."""
        return f"ping-pong {self.scheme}"


class Mooncake(_Contender, frozen=True):
    """Mooncake's transfer engine over TCP."""

    name: str = "Mooncake"


class Nixl(_Contender, frozen=True):
    """NIXL with UCX, which takes the fastest way that both processes share."""

    name: str = "NIXL"


Limit: TypeAlias = Memcpy | Gather | RawSocket | PingPong
Peer: TypeAlias = Mooncake | Nixl
Contender: TypeAlias = Kvferry | Limit | Peer
