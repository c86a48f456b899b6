"""Who holds which blocks: what a proxy knows of its workers from their feeds. Pure.

What is known of a worker is either exactly what the worker held at one sequence number of one
generation, or nothing: a gap, a message out of order or a new generation makes it **cold** until a
snapshot is complete. A worker that has not announced itself for the length of its lease is gone.

A lookup is a hint. The engine's own salted lookup decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from kvstore.blockhash import NAME_BYTES
from kvstore.messages import PROTOCOL_VERSION, Announce, Delta, Role, Snapshot, Tier


class Held(NamedTuple):
    """Blocks of a prompt's beginning that one worker holds, per tier, up to the first hole."""

    gpu: int
    dram: int


def _empty() -> dict[Tier, set[bytes]]:
    return {tier: set() for tier in get_args(Tier)}


@dataclass
class _Worker:
    """``seq`` is None while the worker is cold: ``held`` is then what came of a snapshot so far,

    of which ``snapshot`` is the first part and ``parts`` the number of parts taken in.
    """

    announce: Announce
    lease_until: float
    seq: int | None = None
    held: dict[Tier, set[bytes]] = field(default_factory=_empty)
    snapshot: Snapshot | None = None
    parts: int = 0

    def chill(self) -> None:
        """Forgets what the worker holds."""
        self.seq = None
        self.held = _empty()
        self.snapshot = None
        self.parts = 0


class Directory:
    """All workers a proxy knows. For one thread; ``now`` is any monotonic clock, in seconds."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._workers: dict[str, _Worker] = {}

    def apply(self, message: Announce | Snapshot | Delta, now: float) -> None:
        """Takes in one message of a worker's feed; any order is safe, the sent order is useful."""
        if isinstance(message, Announce):
            self._announced(message, now)
            return
        worker = self._workers.get(message.worker)
        if worker is None or worker.announce.generation != message.generation:
            return
        if isinstance(message, Snapshot):
            _take_part(worker, message)
        else:
            _take_change(worker, message)

    def wants(self, worker: str) -> tuple[str, int]:
        """Generation and sequence number for the next Subscribe; ("", 0) asks for a snapshot."""
        known = self._workers.get(worker)
        if known is None or known.seq is None:
            return "", 0
        return known.announce.generation, known.seq

    def expire(self, now: float) -> list[str]:
        """Forgets workers whose lease has run out; returns their names."""
        gone = [name for name, known in self._workers.items() if now >= known.lease_until]
        for name in gone:
            del self._workers[name]
        return gone

    def workers(self, role: Role) -> list[Announce]:
        """What every live worker of ``role`` announced last, by name."""
        announced = (known.announce for known in self._workers.values())
        return sorted((a for a in announced if a.role == role), key=lambda a: a.worker)

    def held(self, names: Sequence[bytes]) -> dict[str, Held]:
        """Per live worker, how many of ``names`` (a prompt's blocks in order) it holds.

        Each tier is counted by itself from the first block to its first hole.
        """
        return {
            worker: Held(_prefix(known, "gpu", names), _prefix(known, "dram", names))
            for worker, known in self._workers.items()
        }

    def blocks(self, worker: str, tier: Tier) -> int:
        """How many blocks ``worker`` is known to hold in ``tier``."""
        known = self._workers.get(worker)
        return len(known.held[tier]) if known is not None and known.seq is not None else 0

    def _announced(self, announce: Announce, now: float) -> None:
        if announce.version != PROTOCOL_VERSION:
            return
        known = self._workers.get(announce.worker)
        lease_until = now + self._lease_seconds
        if known is None:
            self._workers[announce.worker] = _Worker(announce, lease_until)
            return
        if known.announce.generation != announce.generation:
            known.chill()
        elif known.seq is not None and announce.seq > known.seq:
            known.chill()  # the changes in between should have come first
        known.announce = announce
        known.lease_until = lease_until


def _take_part(worker: _Worker, part: Snapshot) -> None:
    if worker.seq is not None and part.seq <= worker.seq:
        return
    if part.part == 0:
        worker.chill()
        worker.snapshot = part
    first = worker.snapshot
    expected = first is not None and (first.seq, first.parts, worker.parts)
    if expected != (part.seq, part.parts, part.part):
        worker.chill()
        return
    worker.held[part.tier].update(_names(part.held))
    worker.parts += 1
    if worker.parts == part.parts:
        worker.seq = part.seq
        worker.snapshot = None


def _take_change(worker: _Worker, change: Delta) -> None:
    if worker.seq is None or change.seq != worker.seq + 1:
        # Already known, or a gap: then, and amid a snapshot, nothing can be built upon.
        if worker.seq is None or change.seq > worker.seq:
            worker.chill()
        return
    held = worker.held[change.tier]
    if change.cleared:
        held.clear()
    held.difference_update(_names(change.removed))
    held.update(_names(change.added))
    worker.seq = change.seq


def _names(joined: bytes) -> list[bytes]:
    return [joined[at : at + NAME_BYTES] for at in range(0, len(joined), NAME_BYTES)]


def _prefix(worker: _Worker, tier: Tier, names: Sequence[bytes]) -> int:
    held = worker.held[tier]
    if worker.seq is None:
        return 0
    for position, name in enumerate(names):
        if name not in held:
            return position
    return len(names)
