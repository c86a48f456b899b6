"""Relaying server-sent events: all of them untouched but the one that carries the usage.

Deltas are not parsed. The usage event is the one with an empty list of choices; no generated
text can look like it, since quotes within JSON strings are escaped.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from kvstore.errors import WireError, WorkerLost
from proxy.wire import decoded

MAX_EVENT_BYTES = 64 << 20
"""Longest single event; beyond it the worker is not speaking SSE to us."""

_END = b"\n\n"
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_DATA = b"data:"

Amend = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""From the decode leg's usage to the fields of the usage event that are kvferry's to tell."""


class EventSplitter:
    """Cuts a stream of bytes, however chunked, into whole events. Pure."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events ``chunk`` completes, each with its end. Raises WorkerLost at the bound."""
        if not self._rest and chunk.endswith(_END) and chunk.count(_END) == 1:
            return [chunk]
        self._rest += chunk
        events: list[bytes] = []
        start = 0
        while (end := self._rest.find(_END, max(start, self._searched))) >= 0:
            events.append(bytes(self._rest[start : end + len(_END)]))
            start = end + len(_END)
            self._searched = start
        del self._rest[:start]
        # An end may lie across two chunks: its first byte is looked at again.
        self._searched = max(0, len(self._rest) - 1)
        if len(self._rest) > MAX_EVENT_BYTES:
            raise WorkerLost("a worker's event is too long", connected=True)
        return events

    def rest(self) -> bytes:
        """What has come of an event that is not complete."""
        return bytes(self._rest)


async def first_event(chunks: AsyncIterator[bytes]) -> bytes:
    """What has come by the time that one event is whole, or the stream's end."""
    begun = b""
    async for chunk in chunks:
        begun += chunk
        if _END in begun or len(begun) > MAX_EVENT_BYTES:
            break
    return begun


async def relay(
    chunks: AsyncIterator[bytes], amend: Amend, *, keep_usage: bool
) -> AsyncIterator[bytes]:
    """What the client is sent for the decode leg's ``chunks``, its usage event amended.

    ``keep_usage`` False leaves that event out: the client had not asked for it.
    """
    splitter = EventSplitter()
    async for chunk in chunks:
        ready = bytearray()
        for event in splitter.feed(chunk):
            fields = usage_event(event)
            if fields is None:
                ready += event
                continue
            if ready:  # before waiting for the other leg's figures
                yield bytes(ready)
                ready.clear()
            told = await amend(fields["usage"])
            if keep_usage:
                ready += _DATA + b" " + msgspec.json.encode({**fields, **told}) + _END
        if ready:
            yield bytes(ready)
    if rest := splitter.rest():
        yield rest


def usage_event(event: bytes) -> dict[str, Any] | None:
    """The fields of ``event`` if it is the usage event."""
    if not event.startswith(_DATA) or not _NO_CHOICES.search(event):
        return None
    try:
        fields = decoded(event[len(_DATA) :])
    except WireError:
        return None
    if isinstance(fields, dict) and isinstance(fields.get("usage"), dict):
        return fields
    return None
