"""The lanes of a receiving end: one for each sender whose blocks come by one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvstore.messages import Broken, Entry, Failed, LaneMessage, Rendezvous, Shipment, Welcome
from kvstore.pages import KVPages
from kvstore.receiving import Placement
from kvstore.transport.collective import LaneReceiver
from kvstore.transport.ends import FromSender
from kvstore.transport.runs import Runs

LANES = 32
"""Lanes kept; senders beyond it send in frames. As many again may still be coming to their end."""


@dataclass(frozen=True)
class Arrived:
    """Blocks in a lane's staging ring. ``done``: the ring may have their place again."""

    run: torch.Tensor
    runs: Runs
    done: Callable[[], None]

    @property
    def size(self) -> int:
        """See Cargo."""
        return len(self.run)

    def place(self, pages: KVPages, placement: Placement) -> int | None:
        """See Cargo. ``pages`` are those of the runs. Unless all are right, nothing is written."""
        del pages
        return self.runs.place(placement, self.run)

    def release(self) -> None:
        """See Cargo."""
        self.done()


@dataclass(frozen=True)
class _Lane:
    end: LaneReceiver
    outbox: deque[LaneMessage]
    """Bounded by what an epoch has to say, and epochs by what the sender begins."""


class ReceivingLanes:
    """One thread. ``wake`` tells it that a turn is due."""

    def __init__(self, runs: Runs, wake: Callable[[], None]) -> None:
        self._runs = runs
        self._wake = wake
        self._lanes: dict[str, _Lane] = {}
        self._ending: list[LaneReceiver] = []
        # Bounded by what may be on the way.
        self._failed: deque[FromSender] = deque()

    def shares(self, welcome: Welcome) -> bool:
        """Whether that sender's device and ours can be joined."""
        here = self._runs
        return welcome.lane == here.kind and (not here.device or here.device != welcome.device)

    def open(self, peer: str, address: str) -> bool:
        """Whether there is one more; ``address`` is of this host, as ``peer`` reaches it."""
        self._ending = [lane for lane in self._ending if not lane.gone()]
        if len(self._lanes) >= LANES or len(self._ending) >= LANES:
            return False
        self._lanes[peer] = _Lane(LaneReceiver(self._runs.bed(address), self._wake), deque())
        return True

    def on_message(self, peer: str, message: Rendezvous | Shipment | Broken | Entry) -> None:
        """What a sender says of its lane."""
        if lane := self._lanes.get(peer):
            lane.end.on_message(message, time.monotonic())

    def turn(self, send: Callable[[str, LaneMessage], bool]) -> None:
        """Do what is due. ``send`` says whether a message went out; else it has its turn again."""
        now = time.monotonic()
        for peer, lane in self._lanes.items():
            lane.outbox.extend(lane.end.turn(now))
            while lane.outbox and send(peer, lane.outbox[0]):
                lane.outbox.popleft()
            for transfer in lane.end.take_failed():
                lost = Failed(transfer, "peer-lost", f"the lane from {peer} came to its end")
                self._failed.append(FromSender(peer, lost, None))

    def receive(self) -> FromSender | None:
        """The next blocks that have come by any lane, or a transfer that was lost with one."""
        for peer, lane in self._lanes.items():
            if arrival := lane.end.receive():
                return self._handed_over(peer, lane.end, arrival.shipment, arrival.run)
        return self._failed.popleft() if self._failed else None

    def drop(self, peer: str) -> None:
        """The connection to this sender is gone."""
        if lane := self._lanes.pop(peer, None):
            lane.end.peer_lost(time.monotonic())
            self._ending.append(lane.end)

    def close(self) -> None:
        """End all."""
        for peer in list(self._lanes):
            self.drop(peer)
        for lane in self._ending:
            lane.close()

    def _handed_over(
        self, peer: str, end: LaneReceiver, shipment: Shipment, run: torch.Tensor
    ) -> FromSender:
        def done() -> None:
            end.taken(shipment, time.monotonic())

        return FromSender(peer, shipment.blocks, Arrived(run, self._runs, done))
