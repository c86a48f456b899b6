"""Sockets to a deployment's own, opened as whoever the audit pretends to be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import zmq

from kvstore.codec import encode, well_formed
from kvstore.credentials import Credentials, CurvePair, PeerRole
from kvstore.errors import ConfigError
from kvstore.messages import AnyMessage, Role
from kvstore.transport.curve import new_key_pair
from kvstore.transport.sockets import SocketOptions, close_listener, dial, listen

_HANDSHAKE_SECONDS = 2.0
_OPTIONS = SocketOptions(max_frame_bytes=64 << 20, heartbeats=False)


@dataclass(frozen=True)
class Guise:
    """As whom a socket is dialled; ``credentials`` None: without any."""

    name: str
    role: PeerRole
    credentials: Credentials | None


def strangers(credentials: Credentials, right: PeerRole) -> list[Guise]:
    """Everybody who must not get in where ``right`` may."""
    pairs = {role: CurvePair(*new_key_pair()) for role in credentials.pairs}
    mixed = {**credentials.pairs, right: CurvePair(*new_key_pair())}
    wrong: list[PeerRole] = [role for role in credentials.pairs if role != right]
    return [
        Guise("no CURVE", right, None),
        Guise("a key of nobody's", right, Credentials(credentials.secret, mixed)),
        Guise("keys of another cluster", right, Credentials(bytes(32), pairs)),
        *(Guise(f"the key of {role}", role, credentials) for role in wrong),
    ]


def shakes_hands(uri: str, server: Role, guise: Guise) -> bool:
    """Whether a listener at ``uri`` lets in whom ``guise`` shows."""
    with dialled(uri, server, guise) as socket:
        # Queues towards a peer open with the end of the handshake.
        return bool(socket.poll(int(1000 * _HANDSHAKE_SECONDS), zmq.POLLOUT))


@contextmanager
def dialled(uri: str, server: Role, guise: Guise) -> Iterator[zmq.Socket[bytes]]:
    """A socket to ``uri``. Raises ConfigError."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        if guise.credentials is None:
            yield _bare(context, uri)
        else:
            yield dial(context, uri, guise.role, server, guise.credentials, _OPTIONS)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot dial {uri}: {error.strerror}") from None
    finally:
        context.destroy(linger=0)


@contextmanager
def posing(me: Role, uri: str, credentials: Credentials) -> Iterator[zmq.Socket[bytes]]:
    """A listener at ``uri`` that has the key of role ``me``, for decode workers to dial."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    decoders: frozenset[PeerRole] = frozenset({"decode"})
    try:
        router = listen(context, uri, me, decoders, credentials, _OPTIONS)
        try:
            yield router
        finally:
            close_listener(router)
    finally:
        context.destroy(linger=0)


def _bare(context: zmq.Context[zmq.Socket[bytes]], uri: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.connect(uri.removeprefix("zmq+"))
    return socket


def say(socket: zmq.Socket[bytes], message: AnyMessage) -> bool:
    """Whether it could be sent."""
    if not socket.poll(int(1000 * _HANDSHAKE_SECONDS), zmq.POLLOUT):
        return False
    socket.send(encode(message), zmq.NOBLOCK)
    return True


def hear(
    socket: zmq.Socket[bytes], kinds: tuple[type[AnyMessage], ...], seconds: float
) -> AnyMessage | None:
    """The next message of these ``kinds``; None where none comes in time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if not socket.poll(int(1000 * left) + 1):
            return None
        message = well_formed(socket.recv_multipart(zmq.NOBLOCK)[0])
        if isinstance(message, kinds):
            return message
    return None
