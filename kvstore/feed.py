"""The proxy's end of the feed: keeps a :class:`~kvstore.index.Directory` true, and
:class:`~kvstore.engagements.Engagements`.

One connection per worker's relay. Each is asked every second for what comes after the last known
state, which is also the subscription's lease, and at once when something was missed. Relays that
are not there yet, or come back, are found by ZeroMQ's own reconnecting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from kvstore.blockhash import are_names
from kvstore.cluster import MOST_WORKERS
from kvstore.codec import MAX_HEADER_BYTES, decode, encode
from kvstore.credentials import Credentials
from kvstore.engagements import Engagements
from kvstore.errors import ConfigError, WireError
from kvstore.index import Directory
from kvstore.messages import (
    PROTOCOL_VERSION,
    ROLES,
    Announce,
    Delta,
    Engaged,
    Role,
    Snapshot,
    Standing,
    Subscribe,
    Tenancy,
    TenantMessage,
)
from kvstore.tenant_feed import TenantFeed
from kvstore.transport.sockets import SocketOptions, dial

SUBSCRIBE_SECONDS = 1.0

_RETRY_SECONDS = 0.1
_OPTIONS = SocketOptions(
    max_frame_bytes=MAX_HEADER_BYTES,
    send_queue=4,
    receive_queue=1000,
    heartbeats=False,  # Leases tell who is there, and this end may be slow to read.
)
_SOCKETS = len(ROLES) * MOST_WORKERS + 64
"""Of all relays, and ZeroMQ's own; without saying so there would be 1,023."""
_BURST = 64
_MOST_SECONDS = 86_400.0
_BURST_BYTES = 1 << 20
"""When so much has come others run first: entering it takes some 30 ms."""

log = logging.getLogger(__name__)


class FeedClient:
    """Follows the relays at ``uris`` (address to the role of its worker) as proxy ``name``.

    Lives in one event loop, as does ``directory``. ``dropped`` counts frames that were no message
    of a feed.
    """

    def __init__(
        self,
        uris: Mapping[str, Role],
        credentials: Credentials,
        name: str,
        directory: Directory,
        tenants: TenantFeed | None = None,
    ) -> None:
        self.dropped = 0
        self.tenants = tenants or TenantFeed()
        self._news = asyncio.Event()
        self.engagements = Engagements()
        self._uris = dict(uris)
        self._credentials = credentials
        self._name = name
        self._directory = directory
        self._heard: Callable[[], None] = lambda: None
        self._context: zmq.asyncio.Context | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._following: dict[str, tuple[zmq.asyncio.Socket, asyncio.Task[None]]] = {}
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        self._told: dict[str, tuple[Engaged, float]] = {}
        self._proxies: dict[str, int] = {}

    def tell(self, worker: Announce, prompts: int, seconds: float) -> None:
        """Other proxies, if there are any, are to know what this one has ``worker`` busy with.

        What it is busy with is told again every second, and anything that could not be sent.
        """
        told = Engaged(worker.worker, worker.generation, self._name, prompts, 0.0)
        self._told[worker.worker] = (told, time.monotonic() + seconds)
        self._tell_again(worker.worker)

    def say(self, standings: Iterable[Standing]) -> None:
        """These hold from now on for tenants: all workers are told, at once where they can be.

        Raises WireError for one tenant too many.
        """
        self.tenants.say(standings)
        for worker, socket in self._sockets.items():
            self._tell_tenants(worker, socket)

    async def news(self) -> None:
        """Returns when a worker has said something of tenants."""
        await self._news.wait()

    async def run(self, heard: Callable[[], None] = lambda: None) -> None:
        """Follows until it is cancelled, and closes everything then.

        ``heard`` is called when anything came. Raises ConfigError, before anything is followed, if
        an address cannot be dialled.
        """
        self._heard = heard
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS)
        try:
            dialled = self._dial(self._uris)
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._expire())
                self._begin(dialled)
        finally:
            self._context.destroy(linger=0)
            self._context = self._tasks = None

    def follow(self, uris: Mapping[str, Role]) -> None:
        """From now on these relays. Those that are followed already notice nothing of it; workers
        behind others are gone when their leases end.

        Raises ConfigError, and changes nothing, if an address cannot be dialled.
        """
        if self._tasks is not None:
            added = self._dial(dict(uris.items() - self._uris.items()))
            for uri, _ in self._uris.items() - uris.items():
                self._hang_up(uri)
            self._begin(added)
        self._uris = dict(uris)

    def _dial(self, uris: Mapping[str, Role]) -> dict[str, zmq.asyncio.Socket]:
        """A socket for each; none is left where one cannot be had."""
        assert self._context is not None
        dialled: dict[str, zmq.asyncio.Socket] = {}
        try:
            for uri, role in uris.items():
                dialled[uri] = dial(self._context, uri, "proxy", role, self._credentials, _OPTIONS)
        except ConfigError:
            for socket in dialled.values():
                socket.close()
            raise
        return dialled

    def _begin(self, dialled: Mapping[str, zmq.asyncio.Socket]) -> None:
        assert self._tasks is not None
        for uri, socket in dialled.items():
            self._following[uri] = socket, self._tasks.create_task(self._follow(socket))

    def _hang_up(self, uri: str) -> None:
        socket, task = self._following.pop(uri)
        for worker in [one for one, known in self._sockets.items() if known is socket]:
            del self._sockets[worker]  # nobody can be told anything there
        task.add_done_callback(lambda _task: socket.close())
        task.cancel()

    async def _expire(self) -> None:
        while True:
            gone = self._directory.expire(time.monotonic())
            for worker in gone:
                log.warning("worker %s is gone: nothing was heard of it", worker)
                for known in (self._sockets, self._told, self._proxies):
                    known.pop(worker, None)
            self.engagements.forget(gone)
            self.tenants.forget(gone)
            self.engagements.expire(time.monotonic())
            await asyncio.sleep(SUBSCRIBE_SECONDS)

    async def _follow(self, socket: zmq.asyncio.Socket) -> None:
        worker, warm, due = "", False, 0.0
        while True:
            if time.monotonic() >= due:
                sent = await self._subscribe(socket, worker)
                self._tell_again(worker)
                self._tell_tenants(worker, socket)
                due = time.monotonic() + (SUBSCRIBE_SECONDS if sent else _RETRY_SECONDS)
            if await socket.poll(max(1, int((due - time.monotonic()) * 1000))):
                worker = await self._hear(socket, worker)
            was_warm, warm = warm, bool(self._directory.wants(worker)[0])
            if was_warm and not warm:
                due = 0.0  # something was missed: ask at once
            await asyncio.sleep(0)  # what can be received at once does not let others run

    async def _subscribe(self, socket: zmq.asyncio.Socket, worker: str) -> bool:
        generation, seq = self._directory.wants(worker)
        wish = Subscribe(PROTOCOL_VERSION, self._name, generation, seq)
        try:
            await socket.send(encode(wish), zmq.NOBLOCK)
        except zmq.Again:
            return False  # not connected
        return True

    def _tell_again(self, worker: str) -> None:
        if worker not in self._told:
            return
        told, until = self._told[worker]
        if worker not in self._sockets:
            if not told.prompts:  # its relay forgets by itself what it is not told again
                del self._told[worker]
            return
        # Who is late is expected to take as long again.
        seconds = min(abs(until - time.monotonic()), _MOST_SECONDS)
        message = msgspec.structs.replace(told, seconds=seconds if told.prompts else 0.0)
        if self._proxies.get(worker, 0) < 2:
            sent_it = True  # there is nobody to be told
        else:
            sent_it = _sent(self._sockets[worker], message)
        if sent_it and not told.prompts:
            del self._told[worker]

    def _tell_tenants(self, worker: str, socket: zmq.asyncio.Socket) -> None:
        for message in self.tenants.owed(worker):
            if not _sent(socket, message):
                return  # in the next second

    async def _hear(self, socket: zmq.asyncio.Socket, worker: str) -> str:
        """Takes in what has arrived, up to a bound; the worker at the other end."""
        messages: list[Announce | Snapshot | Delta] = []
        size = 0
        for _ in range(_BURST):
            try:
                frames: list[Any] = await socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                message = decode(frames[0]) if len(frames) == 1 else None
            except WireError as error:
                message = None
                log.warning("feed of %s: %s", worker or "a worker", error)
            size += sum(len(frame) for frame in frames)
            if isinstance(message, Announce | Snapshot | Delta) and _well_named(message):
                messages.append(message)
                if isinstance(message, Announce):
                    self._meet(message, socket)
            elif isinstance(message, TenantMessage):
                self._hear_of_tenants(message)
            elif isinstance(message, Engaged) and self._sockets.get(message.worker) is socket:
                self.engagements.apply(message, time.monotonic())
            else:
                self.dropped += 1
            if size >= _BURST_BYTES:
                break
        self._directory.apply_all(messages, time.monotonic())
        if messages:
            worker = messages[-1].worker
        self._heard()
        return worker

    def _meet(self, announce: Announce, socket: zmq.asyncio.Socket) -> None:
        self._sockets[announce.worker] = socket
        self._proxies[announce.worker] = announce.proxies
        self.tenants.met(announce.worker, announce.generation)

    def _hear_of_tenants(self, message: TenantMessage) -> None:
        try:
            self.tenants.hear(message)
        except WireError as error:
            log.error("feed of %s: %s", message.worker, error)  # noqa: TRY400 - no traceback
        self._news.set()
        self._news.clear()


def _sent(socket: zmq.asyncio.Socket, message: Engaged | Tenancy) -> bool:
    sending = asyncio.ensure_future(socket.send(encode(message), zmq.NOBLOCK))
    # With that flag the socket has tried by now, and will not again.
    return sending.done() and sending.exception() is None


def _well_named(message: Announce | Snapshot | Delta) -> bool:
    match message:
        case Snapshot():
            return are_names(message.held)
        case Delta():
            return are_names(message.added) and are_names(message.removed)
        case Announce():
            return True
