"""Searches files for many patterns at once, piece by piece, within bounds of bytes and time."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.audit.volatile.canary import Form

PIECE = 8 << 20
WINDOW = 64 << 10
_MOST_SHOWN = 20


@dataclass
class Searched:
    """Of some place: how much was searched, what was found how often, and what was left out."""

    files: int = 0
    bytes: int = 0
    found: Counter[str] = field(default_factory=Counter)
    where: list[str] = field(default_factory=list)
    unreadable: int = 0
    left: int = 0

    def add(self, other: Searched) -> None:
        """``other`` as well."""
        self.files += other.files
        self.bytes += other.bytes
        self.found += other.found
        self.where = [*self.where, *other.where][:_MOST_SHOWN]
        self.unreadable += other.unreadable
        self.left += other.left


class Searcher:
    """``most``: bytes it reads; ``until``: on the clock. Beyond either, files are counted as left.

    ``wanted`` is what must not be there, ``control`` what was planted.
    """

    def __init__(
        self,
        wanted: Sequence[Form],
        control: Sequence[Form],
        most: int,
        until: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forms = [*wanted, *control]
        self._wanted = frozenset(form.name for form in wanted)
        self._overlap = max((len(form.pattern) for form in self._forms), default=1) - 1
        self._left = most
        self._until = until
        self._clock = clock

    def stop(self) -> None:
        """Nothing more is searched; for any thread."""
        self._left = 0

    @property
    def spent(self) -> bool:
        """No more is searched."""
        return self._left <= 0 or self._clock() > self._until

    def file(self, path: str, shown: str = "") -> Searched:
        """All of a file. ``shown``: its name in the report, where ``path`` is not that."""
        result = Searched()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            result.unreadable = 1
            return result
        try:
            self._read(descriptor, shown or path, result)
        except OSError:
            result.unreadable = 1
        finally:
            os.close(descriptor)
        return result

    def _read(self, descriptor: int, shown: str, result: Searched) -> None:
        rest, at = b"", 0
        result.files = 1
        while not self.spent:
            piece = os.pread(descriptor, PIECE, at)
            if not piece:
                return
            self._left -= len(piece)
            result.bytes += len(piece)
            self._look(rest + piece, len(rest), at, shown, result)
            at += len(piece)
            rest = (rest + piece)[-self._overlap :]
        result.left = 1

    def _look(self, held: bytes, known: int, at: int, shown: str, result: Searched) -> None:
        """All forms in ``held``, of which the first ``known`` bytes were looked at before."""
        for begin, end in written(held, self._overlap):
            for form in self._forms:
                # What ends within the known bytes was found with the piece before.
                start = max(begin, known - len(form.pattern) + 1)
                place = held.find(form.pattern, start, end)
                while place >= 0:
                    result.found[form.name] += 1
                    if form.name in self._wanted and len(result.where) < _MOST_SHOWN:
                        result.where.append(f"{form.name} in {shown} at {at - known + place}")
                    place = held.find(form.pattern, place + 1, end)


def written(held: bytes, margin: int) -> list[tuple[int, int]]:
    """Where ``held`` has anything but zeros, in windows, each with a ``margin`` around; apart from
    each other. Memory that nobody has used yet is most of what is searched.
    """
    whole = len(held) // WINDOW * WINDOW
    used = np.frombuffer(held, dtype=np.uint64, count=whole // 8).reshape(-1, WINDOW // 8)
    windows = [int(at) * WINDOW for at in np.flatnonzero(used.any(axis=1))]
    if whole < len(held):
        windows.append(whole)
    spans: list[tuple[int, int]] = []
    for at in windows:
        begin, end = max(0, at - margin), min(len(held), at + WINDOW + margin)
        if spans and begin <= spans[-1][1]:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((begin, end))
    return spans
