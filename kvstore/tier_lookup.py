"""Which chunks a request's lookup has locked in the tier, and who must unlock them. Pure.

::

    start ─▶ WAITING ── answered: n > 0 ─▶ HELD ── keep ─▶ SPENT
                │                           └───── end ──▶ (forgotten)
                ├── answered: 0, link lost ─▶ SPENT
                └── end, or too late ─▶ the answer, when it comes, is unlocked at once

Events come in, errands for the server go out; the owner runs them in order. Invariant: every lock
that an :class:`Ask` took is named by exactly one :class:`Release`, or was kept for a load.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass

from kvstore.tier import TierKey, is_kept


@dataclass(frozen=True, slots=True)
class Ask:
    """Look up tokens ``[0, end)`` and lock what is held. ``session`` names the lookup."""

    session: str
    key: TierKey
    end: int


@dataclass(frozen=True, slots=True)
class Release:
    """Unlock these token ranges of the lookup and the window at ``window`` (0: none); forget it."""

    session: str
    key: TierKey
    ranges: tuple[tuple[int, int], ...]
    window: int = 0


class _Stage(enum.Enum):
    WAITING = enum.auto()
    HELD = enum.auto()
    SPENT = enum.auto()


@dataclass(slots=True)
class _Entry:
    ask: Ask
    deadline: float
    stage: _Stage
    held: int = 0


class LookupLedger:
    """The lookups of all requests. Not thread-safe: its owner locks it.

    ``seconds``: how long ``poll`` may say "not known yet". ``limit``: requests at a time; one more
    is not looked up.
    """

    def __init__(self, chunk_tokens: int, seconds: float, limit: int) -> None:
        self._chunk = chunk_tokens
        self._seconds = seconds
        self._limit = limit
        self._numbers = itertools.count()
        self._requests: dict[str, _Entry] = {}
        self._unanswered: dict[str, _Entry] = {}

    def start(self, key: TierKey, now: float) -> Ask | None:
        """Begin a lookup, if it can find anything and there is room."""
        end = len(key.tokens) // self._chunk * self._chunk
        if key.request in self._requests or end == 0 or not is_kept(key.salt):
            return None
        if len(self._requests) >= self._limit or len(self._unanswered) >= self._limit:
            return None
        ask = Ask(f"{key.request}#{next(self._numbers)}", key, end)
        entry = _Entry(ask, now + self._seconds, _Stage.WAITING)
        self._requests[key.request] = self._unanswered[ask.session] = entry
        return ask

    def answered(self, session: str, tokens: int) -> Release | None:
        """The server has locked the first ``tokens`` tokens for this lookup, and their window."""
        entry = self._unanswered.pop(session, None)
        if entry is None:
            return None
        if entry.stage is _Stage.WAITING and tokens > 0:
            entry.stage, entry.held = _Stage.HELD, tokens
            return None
        entry.stage = _Stage.SPENT
        # A miss may be a lookup the server had not registered yet, so all of it is unlocked.
        return Release(session, entry.ask.key, ((0, tokens or entry.ask.end),), tokens)

    def poll(self, request: str, now: float) -> int | None:
        """See ``TierLookup.poll``."""
        entry = self._requests.get(request)
        if entry is None:
            return 0
        if entry.stage is _Stage.WAITING:
            if now < entry.deadline:
                return None
            entry.stage = _Stage.SPENT
        return entry.held if entry.stage is _Stage.HELD else 0

    def keep(self, request: str, start: int, end: int) -> Release | None:
        """The engine will load ``[start, end)``, widened to whole chunks; unlock the rest.

        The window is the load's too if the range ends where it lies.
        """
        entry = self._requests.get(request)
        if entry is None:
            return None
        if entry.stage is not _Stage.HELD:
            entry.stage = _Stage.SPENT
            return None
        entry.stage = _Stage.SPENT
        start = start // self._chunk * self._chunk
        end = min(-(-end // self._chunk) * self._chunk, entry.held)
        rest = ((0, start), (end, entry.held)) if start < end else ((0, entry.held),)
        ranges = tuple(part for part in rest if part[0] < part[1])
        window = 0 if start < end == entry.held else entry.held
        return Release(entry.ask.session, entry.ask.key, ranges, window)

    def end(self, request: str) -> Release | None:
        """The request is over."""
        entry = self._requests.pop(request, None)
        if entry is None:
            return None
        held, entry.stage = entry.stage is _Stage.HELD, _Stage.SPENT
        if not held:
            return None
        return Release(entry.ask.session, entry.ask.key, ((0, entry.held),), entry.held)

    def lost(self) -> list[Release]:
        """No answer will come any more to what was asked; unlock it once the server is back.

        Which window it has locked, if any, is not known: that lock runs out by itself.
        """
        entries, self._unanswered = self._unanswered, {}
        for entry in entries.values():
            entry.stage = _Stage.SPENT
        return [Release(e.ask.session, e.ask.key, ((0, e.ask.end),)) for e in entries.values()]

    def end_all(self) -> list[Release]:
        """Every request is over."""
        releases = [self.end(request) for request in list(self._requests)]
        return [release for release in releases if release is not None]
