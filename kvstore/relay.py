"""A worker's relay: the engine's cache events in, and the DRAM tier's; a feed for proxies out.

It runs beside the engine, in a thread of the process that supervises it, so it outlives the
engine. It hears both on private ipc sockets; the feed is open to proxies only. What was
missed is asked for again; what cannot be had again makes everything known doubtful, and the worker
counts as cold rather than as warmer than it is.

Not covered: an engine that publishes from several data-parallel ranks, and one without a replay
endpoint, whose last batches can go missing unnoticed until it publishes another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec
import zmq

from kvstore.cluster import WorkerSettings
from kvstore.codec import decode, encode, well_formed
from kvstore.credentials import Credentials, PeerRole
from kvstore.engine_events import Cleared, EventDecoder, InOrder
from kvstore.errors import ConfigError, WireError
from kvstore.messages import (
    Announce,
    Drain,
    Engaged,
    Standing,
    Subscribe,
    Tenancy,
    TenantMessage,
    Usage,
    Wiped,
    WorkerState,
)
from kvstore.private import require_private
from kvstore.relay_core import RelayCore, Told
from kvstore.relay_engine import EngineEvents, listen_engine, receive
from kvstore.tier_feed import TierFeed
from kvstore.transport.sockets import SocketOptions, close_listener, listen

ANNOUNCE_SECONDS = 1.0

_TURN_MS = 50
_BURST = 256
_FEED = SocketOptions(max_frame_bytes=4096, send_queue=256, receive_queue=64)

Changed = Callable[[Sequence[Standing]], None]

log = logging.getLogger(__name__)


class Relay:
    """One worker's relay.

    :meth:`run` owns every socket and all state; the other methods may be called from any thread
    at any time and take effect in the order of the calls. It runs once.
    """

    def __init__(
        self,
        announce: Announce,
        settings: WorkerSettings,
        credentials: Credentials,
        changed: Changed = lambda _standings: None,
    ) -> None:
        """``changed`` is called, on the relay's thread, with what holds otherwise for tenants."""
        self._core = RelayCore(announce)
        self._changed = changed
        self._settings = settings
        self._credentials = credentials
        # Unbounded, but a worker's supervisor has a few wishes per engine start at most.
        self._wishes: SimpleQueue[Callable[[_Turns], None]] = SimpleQueue()
        self._listening: Future[None] = Future()

    def describe(self, announce: Announce) -> None:
        """Announces what ``announce`` says of the worker, apart from state and generation."""
        self._wishes.put(lambda turns: turns.tell([turns.core.describe(announce)]))

    def set_state(self, state: WorkerState) -> None:
        """Announces another state at once."""
        self._wishes.put(lambda turns: turns.tell([turns.core.set_state(state)]))

    def engine_restarted(self, generation: str) -> None:
        """Begins anew; to be called after the old engine has ended, before the new one starts."""
        self._wishes.put(lambda turns: turns.restart(generation))

    def wait_listening(self, seconds: float) -> None:
        """Returns once proxies can connect.

        Raises ConfigError where the address cannot be listened on, TimeoutError after ``seconds``.
        """
        self._listening.result(timeout=seconds)

    def run(self, stop: threading.Event) -> None:
        """Relays until ``stop`` is set. Raises ConfigError as :meth:`wait_listening` does."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        addresses, proxies = self._settings.addresses, frozenset[PeerRole]({"proxy"})
        try:
            _require_private_folder(addresses.events)
            feed = listen(
                context, addresses.feed, self._settings.role, proxies, self._credentials, _FEED
            )
            try:
                self._serve(context, feed, stop)
            finally:
                close_listener(feed)
        except ConfigError as error:
            self._listening.set_exception(error)
            raise
        finally:
            context.term()

    def _serve(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        feed: zmq.Socket[bytes],
        stop: threading.Event,
    ) -> None:
        with closing(_Turns(context, self._core, feed, self._settings, self._changed)) as turns:
            self._listening.set_result(None)
            while not stop.is_set():
                self._grant(turns)
                turns.turn(time.monotonic())

    def _grant(self, turns: _Turns) -> None:
        try:
            while True:
                self._wishes.get_nowait()(turns)
        except Empty:
            return


class _Turns:
    """The relay's sockets and what happens in one turn of its loop."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        core: RelayCore,
        feed: zmq.Socket[bytes],
        settings: WorkerSettings,
        changed: Changed,
    ) -> None:
        self.core = core
        self._changed = changed
        self._context = context
        self._feed = feed
        tier = settings.dram_feed
        self._tier = TierFeed(context, tier, settings.worker) if tier else None
        self._engine = EngineEvents(context, settings.addresses.events)
        self._tenants = listen_engine(context, settings.addresses.tenants)
        self._decoder = EventDecoder()
        self._next_announce = 0.0

    def close(self) -> None:
        """Closes the engine's sockets, and the tier's."""
        self._engine.close()
        self._tenants.close()
        if self._tier is not None:
            self._tier.close()

    def turn(self, now: float) -> None:
        """Waits for something to happen, at most a moment, and does what is due."""
        poller = zmq.Poller()
        tier = [self._tier.socket] if self._tier is not None else []
        for socket in (self._feed, self._tenants, *self._engine.sockets, *tier):
            poller.register(socket, zmq.POLLIN)
        poller.poll(_TURN_MS)
        for _ in range(_BURST):
            if not self._hear_proxy(now):
                break
        for arrived in self._engine.hear(now):
            self._take_in(arrived)
        if self._tier is not None:
            self.tell(self.core.apply("dram", self._tier.hear(now)))
            self._hear_tier(self._tier.told())
        self.tell(self._hear_engine())
        if now >= self._next_announce:
            self._next_announce = now + ANNOUNCE_SECONDS
            self.tell([*self.core.expire(now), self.core.announce])
            self._tell_tier(self.core.tenancies())

    def restart(self, generation: str) -> None:
        """A new engine: nothing the old one sent may be heard any more."""
        self._engine.close()
        self._engine = EngineEvents(self._context, self._engine.events)
        self._decoder = EventDecoder()
        self.tell(self.core.restart(generation))

    def tell(self, messages: Iterable[Told | Engaged | TenantMessage]) -> None:
        """Sends ``messages`` to every subscriber; drops those that cannot take them."""
        for message in messages:
            frame = encode(message)
            for peer in self.core.subscribers:
                self._send(peer, frame)

    def _take_in(self, arrived: InOrder) -> None:
        if arrived.lost:
            log.warning("engine events were lost: the worker counts as cold")
            self.tell(self.core.apply("gpu", [Cleared()]))
        for batch in arrived.batches:
            try:
                events = self._decoder.decode(batch)
            except WireError as error:
                log.error("%s; the worker counts as cold", error)  # noqa: TRY400 - no traceback
                events = [Cleared()]
            self.tell(self.core.apply("gpu", events))

    def _hear_proxy(self, now: float) -> bool:
        try:
            peer, *frames = self._feed.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        try:
            message = decode(frames[0]) if len(frames) == 1 else None
        except WireError as error:
            log.warning("feed: %s", error)
            return True
        if isinstance(message, Subscribe):
            news = self.core.subscribe(peer, message, now)
            # Epochs first: who knows this worker is not to ask it for what has been flushed.
            known = [*self.core.tenancies(), *news, *self.core.engaged(message.proxy)]
            for told in known if news else []:
                if not self._send(peer, encode(told)):
                    break
        elif isinstance(message, Drain):
            announce = self.core.drain(message)
            self.tell([announce])
            self._send(peer, encode(announce))
        elif isinstance(message, Tenancy):
            self._stand(peer, message)
        elif isinstance(message, Engaged):
            for other in self.core.engage(peer, message):
                self._send(other, frames[0])
        return True

    def _stand(self, peer: bytes, message: Tenancy) -> None:
        """Whoever says what holds is told what does; all are, where that is news."""
        now = self._take(message)
        if now is not None:
            self._send(peer, encode(now))

    def _take(self, message: Tenancy) -> Tenancy | None:
        """What holds now, where that is no news; all have been told of it otherwise."""
        try:
            changed, now = self.core.stand(message)
        except WireError as error:
            log.error("feed: %s", error)  # noqa: TRY400 - no traceback
            return None
        if not changed:
            return now
        self.tell([now])
        self._tell_tier([now])
        self._changed(changed)
        return None

    def _hear_tier(self, told: Iterable[TenantMessage]) -> None:
        """What the tier's server says of tenants; of flushes it may know what nobody else does."""
        for message in told:
            if isinstance(message, Tenancy):
                self._take(self.core.raised(message))
            else:
                self.tell(self._of_worker([message]))

    def _tell_tier(self, tenancies: Iterable[Tenancy]) -> None:
        """Also every second: the tier's server may have been started anew."""
        if self._tier is not None:
            for tenancy in tenancies:
                self._tier.tell(tenancy)

    def _hear_engine(self) -> list[TenantMessage]:
        """What the engine says of tenants."""
        heard = []
        for _ in range(_BURST):
            frames = receive(self._tenants)
            if frames is None:
                break
            message = well_formed(frames[0]) if len(frames) == 1 else None
            if isinstance(message, Usage | Wiped):
                heard.append(message)
        return self._of_worker(heard)

    def _of_worker(self, heard: Iterable[Usage | Wiped]) -> list[TenantMessage]:
        worker = self.core.announce.worker
        return [msgspec.structs.replace(message, worker=worker) for message in heard]

    def _send(self, peer: bytes, frame: bytes) -> bool:
        try:
            self._feed.send_multipart([peer, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Gone, or its queue is full: either way it would miss this one.
            log.info("feed: subscriber dropped: %s", error.strerror)
            self.tell(self.core.drop(peer))
            return False
        return True


def _require_private_folder(events: str) -> None:
    """The engine's events carry salts in clear, and nothing but their folder protects them."""
    if not events.startswith("ipc:///"):
        raise ConfigError(f"engine events belong on ipc:///path, not on {events!r}")
    folder = Path(events.removeprefix("ipc://")).parent
    try:
        require_private(folder.stat(), folder)
    except OSError as error:
        raise ConfigError(f"cannot reach {folder}: {error.strerror}") from None
