"""What the conductor of a benchmark and its two processes tell each other, over a Unix socket.

::

    conductor                          sender, receiver
      ◀──────────────────────────────── Hello       its pages are filled
      Open ─────────────────────────▶   Opened      a contender's end is there
      Meet ─────────────────────────▶   Done        it knows the other end
      Arm, Move ────────────────────▶   Done, Moved a case is prepared; it has been moved
      Wipe, Check ──────────────────▶   Done, Checked

Anything may be answered by ``Trouble``. A frame is a line of JSON.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from bench.transport.case import Case, Side
from bench.transport.contender import Contender

LONGEST_FRAME = 1 << 20


class _Frame(msgspec.Struct, frozen=True, tag=True):
    """Base of all."""


class Open(_Frame, frozen=True):
    """Make your end of a contender."""

    contender: Contender


class Meet(_Frame, frozen=True):
    """The other end offers this."""

    contender: Contender
    offer: str


class Arm(_Frame, frozen=True):
    """Prepare all that comes before pages are supplied."""

    contender: Contender
    case: Case


class Move(_Frame, frozen=True):
    """Supply the pages, or await them."""

    contender: Contender
    case: Case


class Wipe(_Frame, frozen=True):
    """Forget what these pages hold."""

    case: Case


class Check(_Frame, frozen=True):
    """Compare what has been received with what was sent."""

    case: Case


class Hello(_Frame, frozen=True):
    """The first frame of a process."""

    side: Side


class Opened(_Frame, frozen=True):
    """``offer``: what the other end must know; ``version``: of what moves the pages, if it has
    one."""

    offer: str
    version: str = ""


class Done(_Frame, frozen=True):
    """It is."""


class Moved(_Frame, frozen=True):
    """Seconds on the host's monotonic clock; None where the other end is the one to tell."""

    began: float | None = None
    ended: float | None = None


class Checked(_Frame, frozen=True):
    """How many blocks are not what they must be."""

    wrong: int


class Trouble(_Frame, frozen=True):
    """It could not be done, in one line."""

    reason: str


Asked: TypeAlias = Open | Meet | Arm | Move | Wipe | Check
Answer: TypeAlias = Hello | Opened | Done | Moved | Checked | Trouble

_asked: msgspec.json.Decoder[Asked] = msgspec.json.Decoder(Asked)
_answer: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def encode(frame: Asked | Answer) -> bytes:
    """One line."""
    return msgspec.json.encode(frame) + b"\n"


def decode_asked(line: bytes) -> Asked:
    """What the conductor asks. Raises msgspec.DecodeError."""
    return _asked.decode(line)


def decode_answer(line: bytes) -> Answer:
    """What a process answers. Raises msgspec.DecodeError."""
    return _answer.decode(line)
