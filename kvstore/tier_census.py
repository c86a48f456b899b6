"""Which blocks can be loaded from the DRAM tier, from what becomes of LMCache's objects. Pure.

An object holds a part of a chunk: a rank's share of it or, where windows are needed, of the window
at its end. Its chunk can be loaded while all of its parts are stored::

    reserved ── filed: these blocks ──▶ named ── stored ──▶ counts
        └────────── stored: nobody vouches for what is in it ──▶ (does not count until it is gone)

A worker says which blocks an object holds after it has filled it and before it is stored, so what
LMCache stores of itself, because a worker has died over a reservation, is never counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from kvstore.blockhash import split_names
from kvstore.engine_events import Cleared, Event, Removed, Stored

MAX_CHANGES = 1 << 16
"""Chunks that came or went since the last ``drain``; one more and everything is told anew."""


@dataclass(slots=True)
class _Chunk:
    """``parts`` objects make it whole; ``named`` are known to be of it, ``stored`` are there."""

    scope: str
    names: bytes
    parts: int
    named: int = 0
    stored: int = 0

    @property
    def loadable(self) -> bool:
        return self.stored >= self.parts


@dataclass(slots=True)
class _Object:
    chunk: _Chunk | None = None
    stored: bool = False


class TierCensus:
    """The objects of one server, at most as many as fit into its memory. Its owner locks it.

    Objects are known by any key. A **scope** is what workers file in that can load each other's
    objects.
    """

    def __init__(self) -> None:
        self._objects: dict[Hashable, _Object] = {}
        self._chunks: dict[tuple[str, bytes], _Chunk] = {}
        self._changes: deque[tuple[str, Event]] = deque()
        self._scopes: set[str] = set()
        self._too_many = False

    def __len__(self) -> int:
        return len(self._objects)

    def reserved(self, keys: Iterable[Hashable]) -> None:
        """Memory has been set aside for these objects.

        That of one reserved before, too long ago, is then another writer's to fill.
        """
        for key in keys:
            found = self._objects.setdefault(key, _Object())
            if not found.stored:
                self._release(found.chunk)
                found.chunk = None

    def filed(self, scope: str, parts: int, named: Iterable[tuple[Hashable, bytes]]) -> None:
        """Each of these objects holds a part of the chunk with these joined names.

        What is not reserved, or stored already, is left as it is.
        """
        self._scopes.add(scope)
        for key, names in named:
            found = self._objects.get(key)
            if found is None or found.stored:
                continue
            chunk = self._chunks.setdefault((scope, names), _Chunk(scope, names, parts))
            if found.chunk is not chunk:
                self._release(found.chunk)
                chunk.named += 1
                found.chunk = chunk

    def stored(self, keys: Iterable[Hashable]) -> None:
        """These objects can be read from now on."""
        for key in keys:
            found = self._objects.setdefault(key, _Object())
            if found.stored:
                continue
            found.stored = True
            chunk = found.chunk
            if chunk is not None:
                chunk.stored += 1
                if chunk.stored == chunk.parts:
                    self._change(chunk.scope, Stored(split_names(chunk.names)))

    def gone(self, keys: Iterable[Hashable]) -> None:
        """These objects are there no more, stored or not."""
        for key in keys:
            found = self._objects.pop(key, None)
            chunk = found.chunk if found is not None else None
            if found is None or chunk is None:
                continue
            if found.stored:
                if chunk.stored == chunk.parts:
                    self._change(chunk.scope, Removed(split_names(chunk.names)))
                chunk.stored -= 1
            self._release(chunk)

    def drain(self) -> dict[str, Sequence[Event]]:
        """What has changed since the last call, scope by scope, in order."""
        told: dict[str, list[Event]] = {}
        if self._too_many:
            self._too_many = False
            told = {scope: [Cleared()] for scope in self._scopes}
            for chunk in self._chunks.values():
                if chunk.loadable:
                    told[chunk.scope].append(Stored(split_names(chunk.names)))
        for scope, event in self._changes:
            told.setdefault(scope, []).append(event)
        self._changes.clear()
        return dict(told)

    def _change(self, scope: str, event: Event) -> None:
        if self._too_many:
            return
        if len(self._changes) >= MAX_CHANGES:
            self._too_many = True
            self._changes.clear()
            return
        self._changes.append((scope, event))

    def _release(self, chunk: _Chunk | None) -> None:
        if chunk is not None:
            chunk.named -= 1
            if chunk.named == 0:
                del self._chunks[chunk.scope, chunk.names]
