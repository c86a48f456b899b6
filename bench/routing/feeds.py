"""The feeds of many stub workers in one event loop: relays without an engine behind them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence

import zmq

from kvstore.codec import decode, encode
from kvstore.credentials import Credentials
from kvstore.engine_events import Removed, Stored
from kvstore.errors import WireError
from kvstore.messages import (
    Announce,
    Holding,
    Snapshot,
    Subscribe,
    Tenancy,
    TenantMessage,
    Usage,
)
from kvstore.relay import ANNOUNCE_SECONDS
from kvstore.relay_core import RelayCore, Told
from kvstore.transport.sockets import SocketOptions, listen

_OPTIONS = SocketOptions(max_frame_bytes=4096, send_queue=256, receive_queue=64)
_SPARE_SOCKETS = 64
_TIER_BYTES, _HELD_BYTES = 1 << 30, 1 << 20
_TOLD_OF = 1024
"""Tenants in one message."""


def context(feeds: int) -> zmq.Context[zmq.Socket[bytes]]:
    """One for so many feeds."""
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made.set(zmq.MAX_SOCKETS, feeds + _SPARE_SOCKETS)
    return made


class Feed:
    """A worker's relay. Belongs to the running event loop."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        announce: Announce,
        uri: str,
        credentials: Credentials,
        replayed: Callable[[str], None] = lambda _proxy: None,
    ) -> None:
        """Listens on ``uri``. ``replayed`` is told the name of a proxy that is sent a snapshot.

        Raises ConfigError.
        """
        self._core = RelayCore(announce)
        self._replayed = replayed
        self._loop = asyncio.get_running_loop()
        self._socket = listen(
            context, uri, announce.role, frozenset({"proxy"}), credentials, _OPTIONS
        )
        self._loop.add_reader(self._socket.fileno(), self._hear)
        # Workers of a real fleet do not all announce themselves at once.
        self._loop.call_later(random.random() * ANNOUNCE_SECONDS, self._announce)

    def changed(self, added: Sequence[bytes], gone: Sequence[bytes]) -> None:
        """The worker holds ``added`` from now on, and ``gone`` no more."""
        if added or gone:
            self._tell(self._core.apply("gpu", [Stored(tuple(added)), Removed(tuple(gone))]))

    def _announce(self) -> None:
        self._core.expire(time.monotonic())
        self._tell([self._core.announce, *self._usage()])
        self._loop.call_later(ANNOUNCE_SECONDS, self._announce)

    def _hear(self) -> None:
        while True:
            try:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(frames[0]) if len(frames) == 1 else None
            except WireError:
                continue
            if isinstance(message, Tenancy):
                self._send(peer, encode(self._core.stand(message)[1]))
            elif isinstance(message, Subscribe):
                for told in self._core.subscribe(peer, message, time.monotonic()):
                    self._send(peer, encode(told))
                    if isinstance(told, Snapshot):
                        self._replayed(message.proxy)

    def _usage(self) -> Iterable[Usage]:
        """As if every tenant that it was told of had something here."""
        worker = self._core.announce.worker
        tags = [one.tag for part in self._core.tenancies() for one in part.standings]
        holdings = tuple(Holding(tag, _HELD_BYTES) for tag in tags[:_TOLD_OF])
        return [Usage(worker, "gpu", _TIER_BYTES, 0, 1, holdings)] if holdings else []

    def _tell(self, messages: Iterable[Told | TenantMessage]) -> None:
        for message in messages:
            frame = encode(message)
            for peer in self._core.subscribers:
                self._send(peer, frame)
        # ZeroMQ's descriptor tells of what comes once; a send may have taken the telling.
        self._hear()

    def _send(self, peer: bytes, frame: bytes) -> None:
        try:
            self._socket.send_multipart([peer, frame], zmq.NOBLOCK)
        except zmq.ZMQError:
            self._core.drop(peer)
