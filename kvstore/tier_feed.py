"""The relay's end of the DRAM tier's feed: asks its server every second, says what has happened."""

from __future__ import annotations

import logging

import zmq

from kvstore.codec import MAX_HEADER_BYTES, decode, encode
from kvstore.engine_events import Event
from kvstore.errors import WireError
from kvstore.messages import (
    PROTOCOL_VERSION,
    Announce,
    Delta,
    Snapshot,
    Subscribe,
    Tenancy,
    TenantMessage,
)
from kvstore.tier_follower import TierFollower
from kvstore.transport.sockets import SocketOptions, dial_private

SUBSCRIBE_SECONDS = 1.0
COMPLAIN_SECONDS = 60.0
"""Without the feed for so long, it is said: the tier may be used, and nobody be steered to it."""

_RETRY_SECONDS = 0.1
_BURST = 64
_OPTIONS = SocketOptions(
    max_frame_bytes=MAX_HEADER_BYTES,
    send_queue=2048,  # What holds for all tenants, 64 at a time, is told at once.
    receive_queue=1000,
    heartbeats=False,  # The server's announcements tell whether it is there.
)

log = logging.getLogger(__name__)


class TierFeed:
    """Follows the server at ``uri`` as the relay of ``worker``. For one thread.

    Raises ConfigError where the address cannot be dialled.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], uri: str, worker: str) -> None:
        self.socket = dial_private(context, uri, _OPTIONS)
        self._worker = worker
        self._follower = TierFollower()
        self._due = 0.0
        self._cold_since: float | None = None
        self._complained = False
        self._told: list[TenantMessage] = []

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()

    def told(self) -> list[TenantMessage]:
        """What the server has said of tenants since the last call."""
        told, self._told = self._told, []
        return told

    def tell(self, message: Tenancy) -> bool:
        """What holds for tenants, to the server; False where it cannot be told now."""
        try:
            self.socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def hear(self, now: float) -> list[Event]:
        """What has happened to the tier since the last call; asks for what is missing."""
        if now >= self._due:
            self._due = now + (SUBSCRIBE_SECONDS if self._subscribe() else _RETRY_SECONDS)
        was_warm = self._follower.wants[0]
        events = []
        for _ in range(_BURST):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            events += self._take(frames, now)
        events += self._follower.expire(now)
        warm = bool(self._follower.wants[0])
        if was_warm and not warm:
            self._due = now  # something was missed: ask at once
        self._complain(warm, now)
        return events

    def _complain(self, warm: bool, now: float) -> None:
        if warm:
            if self._complained:
                log.warning("the DRAM tier's feed is back: proxies know again what it holds")
            self._cold_since, self._complained = None, False
        elif self._cold_since is None:
            self._cold_since = now
        elif now - self._cold_since >= COMPLAIN_SECONDS and not self._complained:
            self._complained = True
            log.warning("no feed of the DRAM tier: proxies count it as empty")

    def _subscribe(self) -> bool:
        generation, seq = self._follower.wants
        wish = Subscribe(PROTOCOL_VERSION, self._worker, generation, seq)
        try:
            self.socket.send(encode(wish), zmq.NOBLOCK)
        except zmq.Again:
            return False  # not connected
        return True

    def _take(self, frames: list[bytes], now: float) -> list[Event]:
        try:
            message = decode(frames[0]) if len(frames) == 1 else None
        except WireError as error:
            log.warning("feed of the DRAM tier: %s", error)
            return []
        if isinstance(message, Announce | Snapshot | Delta):
            return self._follower.take(message, now)
        if isinstance(message, TenantMessage):
            self._told.append(message)
        return []
