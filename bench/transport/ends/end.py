"""What an end of any contender does, and what goes wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from bench.errors import BenchError
from bench.transport.case import Case
from bench.transport.content import Pages
from bench.transport.frames import Moved

MOVE_SECONDS = 60.0
"""The longest that one case may take."""

ADVICE = "run `make peers`"
"""Where a peer is not installed."""


class TransportFailed(BenchError):
    """A contender could not be measured; the message says which, and why."""


class Room(msgspec.Struct, frozen=True):
    """Where an end works: the pages of its side, and a folder of our own for sockets."""

    pages: Pages
    folder: Path


class End(Protocol):
    """One side of a contender. Any method raises TransportFailed.

    ``offer`` is what the other end must know to meet this one. ``arm`` prepares a case: memory
    reserved, receiver announced. ``move`` supplies the pages on the sending side and returns when
    all are usable on the receiving one, each telling the moments it knows.
    """

    offer: str

    def meet(self, offer: str) -> None: ...

    def arm(self, case: Case) -> None: ...

    def move(self, case: Case) -> Moved: ...

    def close(self) -> None: ...


class Bystander:
    """The end of a contender that needs no other process, or whose other end does it all."""

    offer = ""

    def meet(self, offer: str) -> None:
        """See End."""

    def arm(self, case: Case) -> None:
        """See End."""

    def move(self, case: Case) -> Moved:
        """See End."""
        return Moved()

    def close(self) -> None:
        """See End."""
