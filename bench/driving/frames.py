"""What a run's processes tell each other, over a child's standard input and output."""

from __future__ import annotations

import asyncio
import struct

import msgspec

from bench.driving.target import Target
from bench.load.schedule import Schedule
from bench.records import Record

LONGEST_FRAME = 1 << 30
_HEAD = struct.Struct("<I")


class Job(msgspec.Struct, frozen=True, tag="job"):
    """To a child: prepare this share of a load and say when it is prepared."""

    target: Target
    schedule: Schedule
    salt: str


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """To a child: the run begins at this moment of the host's monotonic clock."""

    at: float


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """From a child: bodies are encoded."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """From a child, several times a second: records that have come to be since the last.

    ``late``: seconds by which its event loop was late to tell, None where it did not wait so long.
    """

    records: tuple[Record, ...]
    sent: int
    in_flight: int
    late: float | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """From a child: every answer has come, or it was stopped, and every record has been told."""


ToChild = Job | Begin
FromChild = Prepared | Progress | Done

_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def encode(message: ToChild | FromChild) -> bytes:
    """One frame: its length (4 bytes, little-endian) and MessagePack."""
    content = msgspec.msgpack.encode(message)
    return _HEAD.pack(len(content)) + content


async def for_child(reader: asyncio.StreamReader) -> ToChild:
    """The next message to a child. Raises IncompleteReadError at the end."""
    return _to_child.decode(await _content(reader))


async def from_child(reader: asyncio.StreamReader) -> FromChild:
    """The next message of a child. Raises IncompleteReadError at the end."""
    return _from_child.decode(await _content(reader))


async def _content(reader: asyncio.StreamReader) -> bytes:
    (length,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if length > LONGEST_FRAME:
        raise ValueError(f"a frame of {length} bytes is longer than {LONGEST_FRAME}")
    return await reader.readexactly(length)
