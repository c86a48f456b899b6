"""A relay's view of the DRAM tier, from the feed of the tier's server. Pure.

What is known is exactly what could be loaded at one sequence number of one life of the server or,
while a snapshot comes in, a part of it. A gap, another life or silence makes it nothing.
"""

from __future__ import annotations

from kvstore.blockhash import are_names, split_names
from kvstore.engine_events import Cleared, Event, Removed, Stored
from kvstore.messages import Announce, Delta, Snapshot

SILENCE_SECONDS = 3.0
"""The server announces itself every second; one that has not for so long holds nothing."""


class TierFollower:
    """What one relay knows. Methods return what has thereby happened to it, in order.

    ``now`` is any monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self._generation = ""
        self._seq: int | None = None
        self._awaited: tuple[int, int, int] | None = None
        self._knows = False
        self._heard = 0.0

    @property
    def wants(self) -> tuple[str, int]:
        """What to ask for: all that follows a sequence number of a generation, or ("", 0)."""
        return ("", 0) if self._seq is None else (self._generation, self._seq)

    def take(self, message: Announce | Snapshot | Delta, now: float) -> list[Event]:
        """Takes in what the server has sent."""
        self._heard = now
        match message:
            case Announce():
                return self._announced(message)
            case Snapshot():
                return self._part(message)
            case Delta():
                return self._changed(message)

    def expire(self, now: float) -> list[Event]:
        """Forgets all if nothing has been heard for too long."""
        return self._forget() if now - self._heard >= SILENCE_SECONDS else []

    def _forget(self) -> list[Event]:
        self._seq = self._awaited = None
        knew, self._knows = self._knows, False
        return [Cleared()] if knew else []

    def _announced(self, announce: Announce) -> list[Event]:
        missed = self._seq is not None and announce.seq > self._seq
        if announce.generation == self._generation and not missed:
            return []
        self._generation = announce.generation
        return self._forget()

    def _part(self, part: Snapshot) -> list[Event]:
        if part.generation != self._generation or (self._seq is not None and part.seq <= self._seq):
            return []
        if part.part == 0:
            begun = self._forget()
            self._awaited = (part.seq, part.parts, 0)
        else:
            begun = []
        if self._awaited != (part.seq, part.parts, part.part) or not are_names(part.held):
            return begun + self._forget()
        self._awaited = (part.seq, part.parts, part.part + 1)
        if part.part + 1 == part.parts:
            self._seq, self._awaited = part.seq, None
        if part.tier == "dram":
            self._knows |= bool(part.held)
            begun.append(Stored(split_names(part.held)))
        return begun

    def _changed(self, change: Delta) -> list[Event]:
        if change.generation != self._generation or self._seq is None or change.seq <= self._seq:
            return []
        if change.seq != self._seq + 1 or not are_names(change.removed + change.added):
            return self._forget()
        self._seq = change.seq
        self._knows |= bool(change.added)
        cleared: list[Event] = [Cleared()] if change.cleared else []
        removed, added = split_names(change.removed), split_names(change.added)
        return [*cleared, Removed(removed), Stored(added)]
