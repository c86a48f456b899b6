"""What a worker holds, and what its proxies have been told of it. No I/O, no clock.

Every change gets the next sequence number of the worker's generation. A subscriber that knows an
older state of this generation is given the changes since, if they are still remembered, and a
snapshot otherwise; from then on it gets every change. Whoever drives this class sends what it
returns, in order, and calls :meth:`RelayCore.drop` for a subscriber that cannot take it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import msgspec

from kvstore.blockhash import NAME_BYTES
from kvstore.engine_events import Cleared, Event, Stored
from kvstore.messages import (
    PROTOCOL_VERSION,
    Announce,
    Delta,
    Drain,
    Engaged,
    Snapshot,
    Standing,
    Subscribe,
    Tenancy,
    Tier,
    WorkerState,
)
from kvstore.standings import Standings

MAX_SUBSCRIBERS = 64
LEASE_SECONDS = 5.0
SNAPSHOT_SECONDS = 2.0
"""A subscriber gets at most one snapshot in this time: the one before may still be on its way."""

_NAMES_PER_MESSAGE = 16_384
_HISTORY = 256

Told = Announce | Snapshot | Delta


@dataclass
class _Subscriber:
    proxy: str
    lease_until: float
    next_snapshot: float
    engaged: Engaged | None = None


class RelayCore:
    """One worker's cache state and subscribers.

    Copies are counted, because an engine may keep one block several times and reports each copy
    that goes; a block is held while one copy is left.
    """

    def __init__(self, announce: Announce) -> None:
        self._announce = msgspec.structs.replace(announce, version=PROTOCOL_VERSION, seq=0)
        self._state = announce.state
        self._drained = False
        self._copies: dict[Tier, Counter[bytes]] = {tier: Counter() for tier in get_args(Tier)}
        self._history: deque[Delta] = deque(maxlen=_HISTORY)
        self._subscribers: dict[bytes, _Subscriber] = {}
        self._standings = Standings()

    @property
    def announce(self) -> Announce:
        """The worker as it is now."""
        return self._announce

    @property
    def subscribers(self) -> list[bytes]:
        """Whom changes are to be sent to."""
        return list(self._subscribers)

    def describe(self, announce: Announce) -> Announce:
        """Replaces what is announced, except state, generation and sequence number."""
        now = self._announce
        self._announce = msgspec.structs.replace(
            announce,
            version=now.version,
            state=now.state,
            generation=now.generation,
            seq=now.seq,
            proxies=now.proxies,
        )
        return self._announce

    def set_state(self, state: WorkerState) -> Announce:
        """Announces another state; to be sent to all."""
        self._state = state
        return self._announce_state()

    def drain(self, wish: Drain) -> Announce:
        """The worker drains whenever it is ready, until that is taken back; to be sent to all."""
        if wish.worker == self._announce.worker:
            self._drained = wish.on
        return self._announce_state()

    def _announce_state(self) -> Announce:
        drains = self._drained and self._state == "ready"
        state: WorkerState = "draining" if drains else self._state
        self._announce = msgspec.structs.replace(self._announce, state=state)
        return self._announce

    def restart(self, generation: str) -> list[Told]:
        """The engine starts anew with nothing in its memory. What to send to all.

        What is in DRAM outlives it.
        """
        self._announce = msgspec.structs.replace(self._announce, generation=generation, seq=0)
        self._history.clear()
        self._copies["gpu"].clear()
        for known in self._subscribers.values():
            known.engaged = None
        return [self._announce, *self._snapshot()]

    def apply(self, tier: Tier, events: Iterable[Event]) -> list[Delta]:
        """Takes in what happened in ``tier``; the changes to send to all, in order."""
        copies, cleared = self._copies[tier], False
        held_before: dict[bytes, bool] = {}
        for event in events:
            if isinstance(event, Cleared):
                copies.clear()
                held_before.clear()
                cleared = True
                continue
            change = 1 if isinstance(event, Stored) else -1
            for name in event.names:
                held_before.setdefault(name, name in copies)
                copies[name] += change
                if copies[name] <= 0:
                    del copies[name]
        added = [name for name, held in held_before.items() if not held and name in copies]
        removed = [name for name, held in held_before.items() if held and name not in copies]
        return self._record(tier, cleared, added, removed)

    def subscribe(self, peer: bytes, wish: Subscribe, now: float) -> list[Told]:
        """What to send to ``peer`` alone: nothing if it has all there is, or on a full house."""
        if wish.version != PROTOCOL_VERSION:
            return []
        known = self._subscribers.get(peer)
        if known is None and len(self._subscribers) >= MAX_SUBSCRIBERS:
            return []
        continues = wish.generation == self._announce.generation
        if known is not None:
            known.lease_until = now + LEASE_SECONDS
            # Behind, in the same generation: the changes since are on their way to it.
            if continues or now < known.next_snapshot:
                return []
        since = self._since(wish.seq) if continues else None
        told: Iterable[Snapshot | Delta] = self._snapshot() if since is None else since
        next_snapshot = now + SNAPSHOT_SECONDS if since is None else now
        self._admit(peer, _Subscriber(wish.proxy, now + LEASE_SECONDS, next_snapshot))
        return [self._announce, *told]

    def tenancies(self) -> list[Tenancy]:
        """All that holds here for tenants."""
        return [self._tenancy(part) for part in self._standings.parts()]

    def stand(self, told: Tenancy) -> tuple[list[Standing], Tenancy]:
        """Takes in what a proxy says of tenants: what is otherwise now, and what to say of these.

        Raises WireError where they are too many.
        """
        changed = self._standings.take(told.standings)
        now = tuple(self._standings.of(standing.tag) for standing in told.standings)
        return changed, self._tenancy(now)

    def raised(self, told: Tenancy) -> Tenancy:
        """The epochs of ``told``, with the shares that hold here."""
        known = ((one, self._standings.of(one.tag)) for one in told.standings)
        standings = (msgspec.structs.replace(ours, epoch=one.epoch) for one, ours in known)
        return self._tenancy(tuple(standings))

    def _tenancy(self, standings: tuple[Standing, ...]) -> Tenancy:
        return Tenancy(self._announce.worker, standings)

    def engaged(self, proxy: str) -> list[Engaged]:
        """What other proxies than this one have the worker busy with: for who is new."""
        known = [one.engaged for one in self._subscribers.values() if one.proxy != proxy]
        return [one for one in known if one is not None]

    def engage(self, peer: bytes, message: Engaged) -> list[bytes]:
        """Takes in what a subscriber has this worker busy with; whom to pass it on to."""
        known = self._subscribers.get(peer)
        here = self._announce.worker, self._announce.generation
        if known is None or (message.worker, message.generation) != here:
            return []
        if message.proxy != known.proxy:
            return []
        known.engaged = message if message.prompts else None
        return [other for other in self._subscribers if other != peer]

    def drop(self, peer: bytes) -> list[Engaged]:
        """Forgets a subscriber; it may subscribe again. What to tell the others."""
        known = self._subscribers.pop(peer, None)
        self._count_proxies()
        if known is None or known.engaged is None:
            return []
        return [msgspec.structs.replace(known.engaged, prompts=0, seconds=0.0)]

    def expire(self, now: float) -> list[Engaged]:
        """Forgets subscribers that have not renewed their lease; what to tell the others."""
        late = [peer for peer, known in self._subscribers.items() if now >= known.lease_until]
        return [told for peer in late for told in self.drop(peer)]

    def _admit(self, peer: bytes, subscriber: _Subscriber) -> None:
        """In place of what the same proxy was known by before it connected anew."""
        for other, known in list(self._subscribers.items()):
            if known.proxy == subscriber.proxy:
                subscriber.engaged = known.engaged
                del self._subscribers[other]
        self._subscribers[peer] = subscriber
        self._count_proxies()

    def _count_proxies(self) -> None:
        self._announce = msgspec.structs.replace(self._announce, proxies=len(self._subscribers))

    def _record(
        self, tier: Tier, cleared: bool, added: Sequence[bytes], removed: Sequence[bytes]
    ) -> list[Delta]:
        deltas = []
        most = max(len(added), len(removed), int(cleared))
        for start in range(0, most, _NAMES_PER_MESSAGE):
            stop = start + _NAMES_PER_MESSAGE
            self._announce = msgspec.structs.replace(self._announce, seq=self._announce.seq + 1)
            delta = Delta(
                worker=self._announce.worker,
                generation=self._announce.generation,
                seq=self._announce.seq,
                tier=tier,
                cleared=cleared and start == 0,
                added=b"".join(added[start:stop]),
                removed=b"".join(removed[start:stop]),
            )
            self._history.append(delta)
            deltas.append(delta)
        return deltas

    def _since(self, seq: int) -> list[Delta] | None:
        """The changes after ``seq``; None if they are not all remembered, or never were."""
        if seq > self._announce.seq:
            return None
        oldest = self._history[0].seq if self._history else self._announce.seq + 1
        return [d for d in self._history if d.seq > seq] if seq + 1 >= oldest else None

    def _snapshot(self) -> list[Snapshot]:
        pieces = [(tier, part) for tier, held in self._copies.items() for part in _parts(held)]
        pieces = pieces or [("gpu", b"")]
        return [
            Snapshot(
                worker=self._announce.worker,
                generation=self._announce.generation,
                seq=self._announce.seq,
                part=part,
                parts=len(pieces),
                tier=tier,
                held=held,
            )
            for part, (tier, held) in enumerate(pieces)
        ]


def _parts(names: Iterable[bytes]) -> Iterator[bytes]:
    joined = b"".join(names)
    size = _NAMES_PER_MESSAGE * NAME_BYTES
    return (joined[start : start + size] for start in range(0, len(joined), size))
