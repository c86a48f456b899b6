"""The DRAM tier's feed, where its server runs: what workers of this host could load from it.

LMCache's threads say what becomes of objects, engines what is in them; a thread of our own tells
the relays, and hears from them what holds for tenants. Nothing here waits for a relay: one that is
too slow is dropped and asks anew.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Hashable, Iterable
from typing import Protocol

import zmq

from kvstore.codec import decode, encode
from kvstore.errors import ConfigError, WireError
from kvstore.messages import (
    PROTOCOL_VERSION,
    Announce,
    Enrol,
    Filed,
    Standing,
    Subscribe,
    Tenancy,
    Usage,
    Wiped,
)
from kvstore.relay_core import RelayCore, Told
from kvstore.standings import parts
from kvstore.tier_census import TierCensus
from kvstore.tier_reports import WipeReports
from kvstore.transport.sockets import SocketOptions, close_listener, listen_private

ANNOUNCE_SECONDS = 1.0
MAX_SCOPES = 64
MAX_WORKERS = 1024

_TURN_MS = 50
_BURST = 256
_STOP_SECONDS = 2.0
_NOWHERE = ""
"""The scope of workers whose engine has not been heard of: nothing is filed in it."""

_OPTIONS = SocketOptions(max_frame_bytes=4096, send_queue=256, receive_queue=64)

log = logging.getLogger(__name__)


class Tenants(Protocol):
    """Whose memory it is. No method waits for anything."""

    def stand(self, standings: Iterable[Standing]) -> None:
        """These hold from now on. Raises WireError for one tenant too many."""

    def flushed(self) -> list[Standing]:
        """What holds for tenants of whom something was flushed."""

    def usage(self) -> list[Usage]:
        """The memory's bytes, and what is held of each tenant."""

    def wiped(self) -> list[Wiped]:
        """The flushes that are done since the last call."""


class TierServer:
    """Listens on ``uri`` from the start. Any thread may call any method; none waits for a socket.

    Raises ConfigError where the address cannot be listened on.
    """

    def __init__(self, uri: str, tenants: Tenants) -> None:
        self._tenants = tenants
        self._lock = threading.Lock()
        self._census = TierCensus()
        self._scopes: dict[str, str] = {}
        self._known: set[str] = set()
        self._stopping = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            feed = _Feed(listen_private(self._context, uri, _OPTIONS), tenants)
        except ConfigError:
            self._context.term()
            raise
        self._thread = threading.Thread(
            target=self._run, args=(feed,), name="kvferry-tier-feed", daemon=True
        )
        self._thread.start()

    def enrol(self, message: Enrol) -> None:
        """A worker's engine has connected. Raises WireError where that is one too many."""
        with self._lock:
            known, workers = self._known | {message.scope}, {*self._scopes, message.worker}
            if len(known) > MAX_SCOPES or len(workers) > MAX_WORKERS:
                raise WireError("too many workers, or kinds of them, in one tier's life")
            self._known, self._scopes[message.worker] = known, message.scope

    def filed(self, message: Filed, objects: list[Hashable]) -> None:
        """``objects`` are those that ``message`` speaks of. Raises WireError if they do not fit."""
        size, rest = divmod(len(message.names), len(objects) or 1)
        if rest or not size:
            raise WireError(f"{len(message.names)} bytes of names for {len(objects)} objects")
        starts = range(0, len(message.names), size)
        names = [message.names[start : start + size] for start in starts]
        with self._lock:
            if message.scope not in self._known:
                raise WireError("filed by nobody who has enrolled")
            self._census.filed(message.scope, message.parts, zip(objects, names, strict=True))

    def reserved(self, objects: Iterable[Hashable]) -> None:
        """See ``TierCensus``."""
        with self._lock:
            self._census.reserved(objects)

    def stored(self, objects: Iterable[Hashable]) -> None:
        """See ``TierCensus``."""
        with self._lock:
            self._census.stored(objects)

    def gone(self, objects: Iterable[Hashable]) -> None:
        """See ``TierCensus``."""
        with self._lock:
            self._census.gone(objects)

    def close(self) -> None:
        """Stops telling; relays hear nothing more, and forget."""
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self, feed: _Feed) -> None:
        try:
            while not self._stopping.is_set():
                self._turn(feed, time.monotonic())
        except Exception:
            log.exception("the DRAM tier's feed has failed for good: relays count it as empty")
        finally:
            feed.close()
            self._context.term()

    def _turn(self, feed: _Feed, now: float) -> None:
        with self._lock:
            changes = self._census.drain()
            scopes = dict(self._scopes)
        for scope, events in changes.items():
            feed.tell(scope, feed.core(scope).apply("dram", events))
        feed.hear(scopes, now)
        feed.report(self._tenants.wiped())
        feed.announce(now)


class _Feed:
    """The socket, and what each scope's subscribers have been told. For one thread."""

    def __init__(self, router: zmq.Socket[bytes], tenants: Tenants) -> None:
        self._router = router
        self._tenants = tenants
        self._reports = WipeReports()
        self._cores: dict[str, RelayCore] = {}
        self._life = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._next_announce = 0.0

    def close(self) -> None:
        """Closes the socket."""
        close_listener(self._router)

    def core(self, scope: str) -> RelayCore:
        """What can be loaded in ``scope``, and who is told."""
        if scope not in self._cores:
            generation = f"{self._life}-{next(self._numbers)}"
            self._cores[scope] = RelayCore(_introduced(scope or "nowhere", generation))
        return self._cores[scope]

    def hear(self, scopes: dict[str, str], now: float) -> None:
        """Waits a moment for relays' wishes and grants them."""
        if not self._router.poll(_TURN_MS):
            return
        for _ in range(_BURST):
            try:
                peer, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                wish = decode(frames[0]) if len(frames) == 1 else None
            except WireError as error:
                log.warning("feed: %s", error)
                continue
            if isinstance(wish, Subscribe):
                self._grant(peer, wish, scopes.get(wish.proxy, _NOWHERE), now)
            elif isinstance(wish, Tenancy):
                self._stand(peer, wish)

    def report(self, wiped: Iterable[Wiped]) -> None:
        """Tells relays of the flushes that are done, if they do not know."""
        for one in wiped:
            self._reports.done(one, self._subscribers())
        for peer, told in self._reports.take():
            if not self._send(peer, encode(told)):
                self._reports.missed(peer, told)

    def announce(self, now: float) -> None:
        """Tells all subscribers that we are there and what is held of tenants, every second."""
        if now < self._next_announce:
            return
        self._next_announce = now + ANNOUNCE_SECONDS
        held = self._tenants.usage()
        for scope, core in self._cores.items():
            core.expire(now)
            self.tell(scope, [core.announce, *held])
        self._reports.keep(self._subscribers())

    def _subscribers(self) -> set[bytes]:
        return {peer for core in self._cores.values() for peer in core.subscribers}

    def _stand(self, peer: bytes, message: Tenancy) -> None:
        try:
            self._tenants.stand(message.standings)
        except WireError as error:
            log.error("feed: %s", error)  # noqa: TRY400 - no traceback
        self._reports.asked(peer, message.standings)

    def tell(self, scope: str, messages: Iterable[Told | Usage]) -> None:
        """Sends ``messages`` to all subscribers of ``scope``."""
        core = self.core(scope)
        for message in messages:
            frame = encode(message)
            for peer in core.subscribers:
                self._send(peer, frame)

    def _grant(self, peer: bytes, wish: Subscribe, scope: str, now: float) -> None:
        core = self.core(scope)
        for other in self._cores.values():
            if other is not core:
                other.drop(peer)  # its worker has been in another scope
        news = core.subscribe(peer, wish, now)
        # This memory may outlive whoever knew of a flush: without it one more could be no news.
        known = [Tenancy("", part) for part in parts(self._tenants.flushed())] if news else []
        for told in (*known, *news):
            if not self._send(peer, encode(told)):
                return

    def _send(self, peer: bytes, frame: bytes) -> bool:
        try:
            self._router.send_multipart([peer, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Gone, or its queue is full: either way it would miss this one.
            log.info("feed: relay dropped: %s", error.strerror)
            for core in self._cores.values():
                core.drop(peer)
            return False
        return True


def _introduced(scope: str, generation: str) -> Announce:
    """A scope as a feed announces it: of no use but for its name and its generation."""
    return Announce(
        version=PROTOCOL_VERSION,
        worker=scope,
        role="prefill",
        generation=generation,
        state="ready",
        model=scope,
        http="",
        ship="",
        fingerprint="",
        block_size=0,
        max_model_len=0,
        capacity_blocks=0,
        seq=0,
    )
