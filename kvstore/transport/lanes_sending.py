"""The lanes of a sending end: one for each receiver that asked for one."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import count

from kvstore.messages import Blocks, Broken, Cancel, Entry, Failed, LaneMessage, Taken
from kvstore.sending import Batch
from kvstore.transport.collective import LaneSender
from kvstore.transport.ends import FromReceiver
from kvstore.transport.runs import Runs

LANES = 32
"""Lanes kept. One more takes the place of one that nothing goes by; where all are in use, it waits.

As many again may still be coming to their end.
"""


class SendingLanes:
    """One thread. ``address``: of this host, where receivers reach it."""

    def __init__(self, runs: Runs, address: str, wake: Callable[[], None]) -> None:
        self._runs = runs
        self._bed = runs.bed(address)
        self._wake = wake
        self._epochs: Iterator[int] = count(1)
        self._lanes: OrderedDict[bytes, LaneSender] = OrderedDict()
        self._ending: list[LaneSender] = []
        self._outgoing: list[tuple[bytes, LaneMessage | Failed]] = []
        # Bounded by what may be on the way.
        self._failed: deque[FromReceiver] = deque()

    def room(self, peer: bytes) -> int:
        """How many blocks may go there now. Asking begins a lane, or its next epoch."""
        lane = self._lanes.get(peer) or self._begin(peer)
        ready = lane is not None and lane.slot(time.monotonic()) is not None
        return self._bed.slot_blocks if ready else 0

    def load(self, batch: Batch) -> tuple[bytes, ...]:
        """Read the batch's pages into its lane's slot, where there is room; their digests."""
        self._lanes.move_to_end(batch.peer)
        slot = self._lanes[batch.peer].slot(time.monotonic())
        assert slot is not None
        run = slot[: len(batch.block_ids) * self._bed.block_bytes]
        return self._runs.load(batch, run)

    def send(self, peer: bytes, blocks: Blocks) -> None:
        """What was loaded last goes."""
        self._lanes[peer].send(blocks, time.monotonic())

    def on_message(self, peer: bytes, message: Taken | Broken | Entry) -> None:
        """What a receiver says of its lane."""
        if lane := self._lanes.get(peer):
            lane.on_message(message, time.monotonic())

    def turn(self) -> list[tuple[bytes, LaneMessage | Failed]]:
        """Do what is due; what receivers are to be told, in order."""
        now = time.monotonic()
        for peer, lane in self._lanes.items():
            self._outgoing += [(peer, message) for message in lane.turn(now)]
            for transfer in lane.take_failed():
                self._fail(peer, transfer)
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def receive(self) -> FromReceiver | None:
        """A transfer that was lost with its epoch, as if its receiver no longer wanted it."""
        return self._failed.popleft() if self._failed else None

    def drop(self, peer: bytes) -> None:
        """There is no way to this receiver any more."""
        if lane := self._lanes.pop(peer, None):
            lane.peer_lost(time.monotonic())
            self._ending.append(lane)

    def close(self) -> None:
        """End all."""
        for peer in list(self._lanes):
            self.drop(peer)
        for lane in self._ending:
            lane.close()

    def _fail(self, peer: bytes, transfer: bytes) -> None:
        """Both ends give it up: also where all of it had been sent, and the sender forgot it."""
        lost = Failed(transfer, "peer-lost", "the lane it went by came to its end")
        self._outgoing.append((peer, lost))
        self._failed.append(FromReceiver(peer, Cancel(transfer)))

    def _begin(self, peer: bytes) -> LaneSender | None:
        self._ending = [lane for lane in self._ending if not lane.gone()]
        if len(self._lanes) >= LANES:
            self._drop_an_idle_one()
        if len(self._lanes) >= LANES or len(self._ending) >= LANES:
            return None
        lane = self._lanes[peer] = LaneSender(self._bed, self._wake, self._epochs)
        return lane

    def _drop_an_idle_one(self) -> None:
        idle = next((peer for peer, lane in self._lanes.items() if lane.idle), None)
        if idle is not None:
            lost = Broken(self._lanes[idle].epoch, "the sender has too many other lanes")
            self._outgoing.append((idle, lost))
            self.drop(idle)
