"""Who holds which blocks: what a proxy knows of its workers from their feeds. Pure.

What is known of a worker is either exactly what the worker held at one sequence number of one
generation, or nothing: a gap, a message out of order or a new generation makes it **cold** until a
snapshot is complete. A worker that has not announced itself for the length of its lease is gone.

All workers and tiers share one table from a block to the set of its holders, so that a lookup costs
the same however many workers there are. A block is known by eight bytes of its hash: two that share
them are one in 2**64 times the number of blocks, and a lookup is a hint; the engine's own salted
lookup decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from kvstore.block_table import ABSENT, BlockTable, Keys
from kvstore.blockhash import NAME_BYTES
from kvstore.holder_sets import EMPTY, HolderSets
from kvstore.messages import PROTOCOL_VERSION, Announce, Delta, Role, Snapshot, Tier

MAX_BLOCKS = 1 << 27
"""Blocks known at a time; one more is not noted, and its holder thought not to have it."""

MAX_SETS = 1 << 20
"""Sets of holders known at a time. A block whose set would be one more is forgotten."""

_TIERS: tuple[Tier, ...] = get_args(Tier)
_SWEPT_AT_ONCE = 512
_SWEPT_IN_PASSING = 1 << 16


class Held(NamedTuple):
    """Blocks of a prompt's beginning that one worker holds, per tier, up to the first hole."""

    gpu: int
    dram: int


class Residency(Mapping[str, Held]):
    """How far each live worker holds one prompt; to be read before the directory changes."""

    def __init__(
        self, ends: Sequence[tuple[int, int]], slots: Mapping[str, int], room: int
    ) -> None:
        """``ends``: by growing length, whose prefix has it. Slots are below ``room``."""
        self._ends = ends
        self._slots = slots
        self._room = room

    def __getitem__(self, worker: str) -> Held:
        first = self._slots[worker] * len(_TIERS)
        return Held(*(self._lengths.get(first + at, 0) for at in range(len(_TIERS))))

    def by_slot(self) -> npt.NDArray[np.int64]:
        """Blocks of shape (slots, tiers), the tiers as in ``Tier``; see :meth:`Directory.slots`."""
        lengths = np.zeros(self._room * len(_TIERS), dtype=np.int64)
        for length, holders in self._ends:
            if length:
                lengths[_bits(holders)] = length
        return lengths.reshape(-1, len(_TIERS))

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @cached_property
    def _lengths(self) -> dict[int, int]:
        """Of those who hold anything, by the number of their bit."""
        lengths: dict[int, int] = {}
        for length, holders in self._ends:
            if length:
                lengths |= dict.fromkeys(_bits(holders), length)
        return lengths


@dataclass
class _Worker:
    """``seq`` is None while the worker is cold: what came of a snapshot so far is not looked at.

    ``snapshot`` is the first of its parts, ``parts`` the number of those taken in.
    """

    announce: Announce
    lease_until: float
    slot: int
    seq: int | None = None
    snapshot: Snapshot | None = None
    parts: int = 0
    blocks: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(_TIERS, 0))

    @property
    def bits(self) -> int:
        """All of its tiers."""
        return sum(_bit(self.slot, tier) for tier in _TIERS)


class Directory:
    """All workers a proxy knows. For one thread; ``now`` is any monotonic clock, in seconds."""

    def __init__(self, lease_seconds: float, max_blocks: int = MAX_BLOCKS) -> None:
        self._lease_seconds = lease_seconds
        self._workers: dict[str, _Worker] = {}
        self._membership = 0
        self._slots: dict[str, int] = {}
        self._spare: list[int] = []
        self._warm = 0
        self._table = BlockTable(max_blocks)
        self._sets = HolderSets(MAX_SETS)
        self._broom = 0
        self._unswept = 0
        self._refused = 0

    def __len__(self) -> int:
        """Blocks that any worker is known to hold, and some that are about to be forgotten."""
        return len(self._table)

    @property
    def membership(self) -> int:
        """Another number whenever a worker has come or gone or announced something else."""
        return self._membership

    @property
    def refused(self) -> int:
        """Blocks and sets that were one too many, so far: what they told was forgotten."""
        return self._refused + self._sets.refused

    def apply(self, message: Announce | Snapshot | Delta, now: float) -> None:
        """Takes in one message of a worker's feed; any order is safe, the sent order is useful."""
        self.apply_all([message], now)

    def apply_all(self, messages: Iterable[Announce | Snapshot | Delta], now: float) -> None:
        """Takes in messages that came together, as if one by one."""
        changes: list[Delta] = []
        for message in messages:
            if changes and (type(message), message.worker) != (Delta, changes[0].worker):
                self._take_changes(changes)
                changes = []
            match message:
                case Announce():
                    self._announced(message, now)
                case Snapshot():
                    self._take_part(message)
                case Delta():
                    changes.append(message)
        self._take_changes(changes)
        self._sweep(_SWEPT_AT_ONCE)

    def wants(self, worker: str) -> tuple[str, int]:
        """Generation and sequence number for the next Subscribe; ("", 0) asks for a snapshot."""
        known = self._workers.get(worker)
        if known is None or known.seq is None:
            return "", 0
        return known.announce.generation, known.seq

    def expire(self, now: float) -> list[str]:
        """Forgets workers whose lease has run out; returns their names."""
        gone = [name for name, known in self._workers.items() if now >= known.lease_until]
        lost = [self._workers.pop(name) for name in gone]
        self._strike(sum(worker.bits for worker in lost if any(worker.blocks.values())))
        self._membership += bool(lost)
        for worker in lost:
            self._warm &= ~worker.bits
            self._spare.append(self._slots.pop(worker.announce.worker))
        self._sweep(_SWEPT_IN_PASSING)
        return gone

    def workers(self, role: Role) -> list[Announce]:
        """What every live worker of ``role`` announced last, by name."""
        announced = (known.announce for known in self._workers.values())
        return sorted((a for a in announced if a.role == role), key=lambda a: a.worker)

    def held(self, names: Sequence[bytes]) -> Residency:
        """How far live workers hold ``names``, a prompt's blocks in order.

        Each tier is counted by itself from the first block to its first hole.
        """
        keys = _keys(b"".join(names))
        numbers = self._table.values(self._table.find(keys))
        starts = np.flatnonzero(np.diff(numbers, prepend=~numbers[:1]))
        holders, ends = self._warm, []
        for start, number in zip(starts.tolist(), numbers[starts].tolist(), strict=True):
            still = holders & self._sets.mask(number)
            if still != holders:
                ends.append((start, holders & ~still))
                holders = still
            if not holders:
                break
        ends.append((len(names), holders))
        return Residency(ends, self._slots, len(self._slots) + len(self._spare))

    def slots(self, workers: Sequence[Announce]) -> npt.NDArray[np.intp]:
        """Where live ``workers`` stand in :meth:`Residency.by_slot`, for this ``membership``."""
        return np.array([self._slots[worker.worker] for worker in workers], dtype=np.intp)

    def blocks(self, worker: str, tier: Tier) -> int:
        """How many blocks ``worker`` is known to hold in ``tier``."""
        known = self._workers.get(worker)
        return known.blocks[tier] if known is not None and known.seq is not None else 0

    def _announced(self, announce: Announce, now: float) -> None:
        if announce.version != PROTOCOL_VERSION:
            return
        known = self._workers.get(announce.worker)
        lease_until = now + self._lease_seconds
        if known is None:
            slot = self._spare.pop() if self._spare else len(self._slots)
            self._slots[announce.worker] = slot
            self._workers[announce.worker] = _Worker(announce, lease_until, slot)
            self._membership += 1
            return
        self._membership += msgspec.structs.replace(announce, seq=known.announce.seq) != (
            known.announce
        )
        if known.announce.generation != announce.generation:
            self._chill(known)
        elif known.seq is not None and announce.seq > known.seq:
            self._chill(known)  # the changes in between should have come first
        known.announce = announce
        known.lease_until = lease_until

    def _take_part(self, part: Snapshot) -> None:
        worker = self._current(part)
        if worker is None or (worker.seq is not None and part.seq <= worker.seq):
            return
        if part.part == 0:
            self._chill(worker)
            worker.snapshot = part
        first = worker.snapshot
        expected = first is not None and (first.seq, first.parts, worker.parts)
        if expected != (part.seq, part.parts, part.part):
            self._chill(worker)
            return
        self._note(worker, part.tier, np.unique(_keys(part.held)), held=True)
        worker.parts += 1
        if worker.parts == part.parts:
            worker.seq, worker.snapshot = part.seq, None
            self._warm |= worker.bits

    def _take_changes(self, changes: Sequence[Delta]) -> None:
        """Changes of one worker; those that follow each other are entered together."""
        runs: list[list[Delta]] = []
        for change in changes:
            worker = self._current(change)
            if worker is None or (worker.seq is not None and change.seq <= worker.seq):
                continue
            if worker.seq is None or change.seq != worker.seq + 1:
                self._chill(worker)  # a gap, or amid a snapshot: nothing can be built upon
                runs.clear()
                continue
            worker.seq = change.seq
            if runs and runs[-1][0].tier == change.tier and not change.cleared:
                runs[-1].append(change)
            else:
                runs.append([change])
        for run in runs:
            self._enter(self._workers[run[0].worker], run)

    def _enter(self, worker: _Worker, run: Sequence[Delta]) -> None:
        """Changes of one tier, of which only the first may clear it."""
        tier = run[0].tier
        removed = np.unique(_keys(b"".join(change.removed for change in run)))
        added = np.unique(_keys(b"".join(change.added for change in run)))
        if len(run) > 1 and len(np.intersect1d(removed, added, assume_unique=True)):
            for change in run:  # their order matters
                self._enter(worker, [change])
            return
        if run[0].cleared and worker.blocks[tier]:
            self._strike(_bit(worker.slot, tier))
            worker.blocks[tier] = 0
        self._note(worker, tier, removed, held=False)
        self._note(worker, tier, added, held=True)

    def _current(self, message: Snapshot | Delta) -> _Worker | None:
        """Whom the message is of, if it is of that worker's present generation."""
        worker = self._workers.get(message.worker)
        if worker is None or worker.announce.generation != message.generation:
            return None
        return worker

    def _chill(self, worker: _Worker) -> None:
        """Forgets what the worker holds."""
        self._warm &= ~worker.bits
        if any(worker.blocks.values()):
            self._strike(worker.bits)
        worker.seq, worker.snapshot, worker.parts = None, None, 0
        worker.blocks = dict.fromkeys(_TIERS, 0)

    def _strike(self, bits: int) -> None:
        if bits:
            self._sets.strike(bits)
            self._unswept = self._table.buckets

    def _note(self, worker: _Worker, tier: Tier, keys: Keys, *, held: bool) -> None:
        """Blocks that ``worker`` holds from now on, or no more."""
        if not len(keys):
            return
        slots = self._table.find(keys)
        known = slots != ABSENT
        if not held:
            keys, slots, known = keys[known], slots[known], known[known]
        before = self._table.values(slots)
        after, differ = self._sets.changed(before, _bit(worker.slot, tier), held=held)
        worker.blocks[tier] += differ if held else -differ
        kept = known & (after != EMPTY)
        self._table.replace(slots[kept], after[kept])
        self._table.remove(slots[known & (after == EMPTY)])
        new = ~known & (after != EMPTY)
        if new.any():
            refused = self._table.insert(keys[new], after[new])
            self._sets.forget(refused)
            worker.blocks[tier] -= len(refused)
            self._refused += len(refused)

    def _sweep(self, buckets: int) -> None:
        """Makes room of what only workers held that are gone, a part of the table at a time."""
        while buckets > 0 and self._unswept > 0:
            count = min(buckets, self._table.buckets - self._broom)
            self._sets.forget(self._table.sweep(self._broom, count, self._sets.struck))
            self._broom = (self._broom + count) % self._table.buckets
            self._unswept -= count
            buckets -= count


def _bit(slot: int, tier: Tier) -> int:
    return 1 << (slot * len(_TIERS) + _TIERS.index(tier))


def _bits(mask: int) -> list[int]:
    """The numbers of its bits."""
    octets = np.frombuffer(mask.to_bytes(mask.bit_length() // 8 + 1, "little"), dtype=np.uint8)
    found: list[int] = np.flatnonzero(np.unpackbits(octets, bitorder="little")).tolist()
    return found


def _keys(names: bytes) -> Keys:
    """What joined ``names`` are known by; no key is 0."""
    words = np.frombuffer(names, dtype=np.uint64)[:: NAME_BYTES // 8]
    keys: Keys = np.maximum(words, np.uint64(1))
    return keys
