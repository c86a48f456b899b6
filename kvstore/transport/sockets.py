"""Sockets between kvferry's processes: one side listens (ROUTER), the other dials (DEALER).

``zmq+tcp://host:port`` is always CURVE: the listener lets in the roles it names and nobody else,
the dialer insists on the listener's role. ``zmq+ipc:///path`` is plain, inside a folder that only
our own user can enter. Every frame, queue and handshake is bounded, so a peer that is gone, hangs
or lies costs a listener no more than its own connection. The kernel finds out about hosts that are
gone (TCP keepalive). Dialers send heartbeats unless told otherwise: they miss the answer of a
listener that hangs, and a listener misses theirs (ZMTP's time to live). Listeners send none: libzmq
4.3.5 aborts the process when one is due on a connection that broke while its queue was full
(``stream_engine_base.cpp``, ``!_io_error``).

A message that arrived over CURVE carries the peer's role: ``frame.get("User-Id")``.
"""

from __future__ import annotations

import socket as plain
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import zmq

from kvstore.cluster import BULK_PORT
from kvstore.credentials import Credentials, PeerRole
from kvstore.errors import ConfigError
from kvstore.messages import LaneKind
from kvstore.private import require_private
from kvstore.transport.curve import allow_list, start_authenticator, token_domain

_HANDSHAKE_MS = 3000
HEARTBEAT_MS = 1000
"""Between two of a dialer's."""

_HEARTBEAT_TIMEOUT_MS = 3000
_HEARTBEAT_TTL_MS = 5000
_KEEPALIVE_SECONDS = 3
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1000
_LONGEST_IPC_PATH = 107
"""What Linux takes for a Unix socket, in bytes."""

Socket = TypeVar("Socket", bound="zmq.Socket[Any]")


@dataclass(frozen=True)
class SocketOptions:
    """Bounds of one socket; queues count messages, per peer.

    ``routing_id`` is what a dialer is known by; empty: the listener makes one up per connection.
    A new connection with the routing id of an old one takes its place. ``heartbeats``: a dialer's;
    it must read what it is sent, or not have any.
    """

    max_frame_bytes: int = 4 << 20
    send_queue: int = 1000
    receive_queue: int = 1000
    routing_id: bytes = b""
    heartbeats: bool = True


DEFAULT_OPTIONS = SocketOptions()


def listen(
    context: zmq.Context[Socket],
    uri: str,
    me: PeerRole,
    allowed: frozenset[PeerRole],
    credentials: Credentials,
    options: SocketOptions = DEFAULT_OPTIONS,
) -> Socket:
    """A bound ROUTER. Sending to a peer that is gone or whose queue is full raises ZMQError.

    Raises ConfigError (one line) when the address is in use or malformed, or its folder open to
    others. Port 0 lets the system choose; :func:`uri_of` tells which.
    """
    endpoint = _endpoint(uri)
    if endpoint.startswith("ipc:"):
        _clear_path(Path(endpoint.removeprefix("ipc://")))
    else:
        endpoint = _numeric(endpoint)
    with _opened(context, zmq.ROUTER, options, f"cannot listen on {uri}") as router:
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if endpoint.startswith("tcp:"):
            keys: dict[str, bytes] = {role: credentials.public_key(role) for role in allowed}
            _guard(context, router, allow_list(keys))
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, credentials.secret_key(me))
        _bind(router, endpoint)
    return router


def listen_private(
    context: zmq.Context[Socket], uri: str, options: SocketOptions = DEFAULT_OPTIONS
) -> Socket:
    """As ``listen``, on ``zmq+ipc:///path``: whom the folder lets in needs no keys."""
    endpoint = _private(uri)
    _clear_path(Path(endpoint.removeprefix("ipc://")))
    with _opened(context, zmq.ROUTER, options, f"cannot listen on {uri}") as router:
        _bind(router, endpoint)
    return router


def dial_private(
    context: zmq.Context[Socket], uri: str, options: SocketOptions = DEFAULT_OPTIONS
) -> Socket:
    """As ``dial``, to a ``listen_private``."""
    endpoint = _private(uri)
    with _opened(context, zmq.DEALER, options, f"cannot dial {uri}") as dealer:
        _reconnect_soon(dealer)
        _connect(dealer, endpoint, options)
    return dealer


def listen_plain(
    context: zmq.Context[Socket], beside: str, token: str, options: SocketOptions = DEFAULT_OPTIONS
) -> Socket:
    """A bound ROUTER without CURVE, for bulk: on the host of ``beside`` (a URI), two ports on.

    Where that leaves the port to the system, so does this. Nobody without ``token`` gets past the
    handshake; it crosses the network in the clear, as all that follows it. Raises ConfigError when
    the port is in use.
    """
    host, _, port = _numeric(_endpoint(beside)).removeprefix("tcp://").rpartition(":")
    endpoint = f"tcp://{host}:{int(port) + BULK_PORT if int(port) else 0}"
    with _opened(context, zmq.ROUTER, options, f"cannot listen on {endpoint} for bulk") as router:
        _guard(context, router, token_domain(token))
        router.setsockopt(zmq.PLAIN_SERVER, 1)
        _bind(router, endpoint)
    return router


def dial_plain(
    context: zmq.Context[Socket], uri: str, token: str, options: SocketOptions = DEFAULT_OPTIONS
) -> Socket:
    """A DEALER to a ``listen_plain``. Raises ConfigError when the address is malformed."""
    endpoint = _endpoint(uri)
    if not endpoint.startswith("tcp:"):
        raise ConfigError(f"{uri!r} is no address for bulk")
    with _opened(context, zmq.DEALER, options, f"cannot dial {uri}") as dealer:
        dealer.setsockopt(zmq.PLAIN_USERNAME, b"bulk")
        dealer.setsockopt(zmq.PLAIN_PASSWORD, token.encode())
        _connect(dealer, endpoint, options)
    return dealer


def dial(
    context: zmq.Context[Socket],
    uri: str,
    me: PeerRole,
    server_role: PeerRole,
    credentials: Credentials,
    options: SocketOptions = DEFAULT_OPTIONS,
) -> Socket:
    """A DEALER that connects to ``uri`` and reconnects until it is closed.

    It queues only towards a peer that is there: sending before that blocks (or raises Again).
    Raises ConfigError when the address is malformed or its folder open to others.
    """
    endpoint = _endpoint(uri)
    with _opened(context, zmq.DEALER, options, f"cannot dial {uri}") as dealer:
        _reconnect_soon(dealer)
        if endpoint.startswith("tcp:"):
            dealer.setsockopt(zmq.CURVE_SERVERKEY, credentials.public_key(server_role))
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, credentials.public_key(me))
            dealer.setsockopt(zmq.CURVE_SECRETKEY, credentials.secret_key(me))
        _connect(dealer, endpoint, options)
    return dealer


def socket_uri(uri: str) -> str:
    """The socket behind a transport's URI: ``shm:///path`` and ``auto:///path`` are ipc sockets.

    ``auto://host:port`` is a TCP one; ``zmq+…://`` stays as it is.
    """
    scheme, _, rest = uri.partition("://")
    if scheme not in {"shm", "auto", *get_args(LaneKind)}:
        return uri
    return f"zmq+{'ipc' if rest.startswith('/') else 'tcp'}://{rest}"


def uri_of(listener: zmq.Socket[Any]) -> str:
    """The URI under which ``listener`` can be dialled."""
    bound = listener.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return f"zmq+{bound.rstrip(bytes(1)).decode()}"


def own_address(uri: str) -> str:
    """This host's address on the way to ``uri`` (of a socket): where what is there reaches us.

    Raises ConfigError when there is no way there.
    """
    endpoint = _endpoint(uri)
    if not endpoint.startswith("tcp:"):
        return "127.0.0.1"
    host, _, port = _numeric(endpoint).removeprefix("tcp://").rpartition(":")
    family = plain.AF_INET6 if host.startswith("[") else plain.AF_INET
    with plain.socket(family, plain.SOCK_DGRAM) as probe:
        try:
            probe.connect((host.strip("[]"), int(port)))  # sends nothing
        except OSError as error:
            raise ConfigError(f"no way to {uri}: {error.strerror}") from None
        return str(probe.getsockname()[0])


def close_listener(listener: zmq.Socket[Any]) -> None:
    """Closes ``listener`` and removes its path, which ZeroMQ would leave behind."""
    scheme, _, path = uri_of(listener).partition("://")
    if scheme == "zmq+ipc":
        Path(path).unlink(missing_ok=True)
    listener.close()


@contextmanager
def _opened(
    context: zmq.Context[Socket], kind: int, options: SocketOptions, complaint: str
) -> Iterator[Socket]:
    """A socket with its limits set; closed again, with a ConfigError, where the rest fails."""
    socket = None
    try:
        socket = context.socket(kind)
        _bound(socket, options)
        yield socket
    except zmq.ZMQError as error:
        if socket is not None:  # else there are too many
            socket.close()
        raise ConfigError(f"{complaint}: {error.strerror}") from None


def _guard(context: zmq.Context[Socket], listener: zmq.Socket[Any], domain: bytes) -> None:
    """Only whom ``domain`` lets in gets past the handshake (:mod:`kvstore.transport.curve`)."""
    start_authenticator(context)
    listener.setsockopt(zmq.ZAP_DOMAIN, domain)
    listener.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def _bind(router: zmq.Socket[Any], endpoint: str) -> None:
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.IPV6, int("[" in endpoint))
    router.bind(endpoint)


def _reconnect_soon(dealer: zmq.Socket[Any]) -> None:
    dealer.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)


def _connect(dealer: zmq.Socket[Any], endpoint: str, options: SocketOptions) -> None:
    dealer.setsockopt(zmq.IMMEDIATE, 1)
    if options.heartbeats:
        dealer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        dealer.setsockopt(zmq.HEARTBEAT_TTL, _HEARTBEAT_TTL_MS)
    if options.routing_id:
        dealer.setsockopt(zmq.ROUTING_ID, options.routing_id)
    dealer.setsockopt(zmq.IPV6, int("[" in endpoint))
    dealer.connect(endpoint)


def _bound(socket: zmq.Socket[Any], options: SocketOptions) -> None:
    """Sets every limit; must come before bind and connect, which only later connections obey."""
    for option, value in (
        (zmq.MAXMSGSIZE, options.max_frame_bytes),
        (zmq.SNDHWM, options.send_queue),
        (zmq.RCVHWM, options.receive_queue),
        (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
        (zmq.LINGER, 0),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_SECONDS),
        (zmq.TCP_KEEPALIVE_INTVL, 1),
        (zmq.TCP_KEEPALIVE_CNT, _KEEPALIVE_SECONDS),
        (zmq.TCP_MAXRT, 2 * _KEEPALIVE_SECONDS * 1000),
    ):
        socket.setsockopt(option, value)


def _endpoint(uri: str) -> str:
    """ZeroMQ's own address for ``uri``, its folder checked if it has one."""
    scheme, _, rest = uri.partition("://")
    if scheme == "zmq+ipc" and rest.startswith("/"):
        path = Path(rest)
        if len(rest.encode()) > _LONGEST_IPC_PATH:
            raise ConfigError(
                f"{uri} is too long for a socket ({_LONGEST_IPC_PATH} bytes): shorten run_dir"
            )
        try:
            require_private(path.parent.stat(), path.parent)
        except OSError as error:
            raise ConfigError(f"cannot reach {path.parent}: {error.strerror}") from None
        return f"ipc://{rest}"
    host, _, port = rest.rpartition(":")
    if scheme == "zmq+tcp" and host and port.isascii() and port.isdigit() and int(port) < 1 << 16:
        return f"tcp://{rest}"
    raise ConfigError(f"{uri!r} is neither zmq+ipc:///path nor zmq+tcp://host:port")


def _private(uri: str) -> str:
    """ZeroMQ's own address for ``uri``, which must be a path."""
    if not uri.startswith("zmq+ipc:"):
        raise ConfigError(f"{uri!r} is not zmq+ipc:///path")
    return _endpoint(uri)


def _clear_path(path: Path) -> None:
    """Refuses a path somebody listens on; ZeroMQ would silently take it away from them."""
    with plain.socket(plain.AF_UNIX, plain.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror}") from None
    raise ConfigError(f"{path} is in use: another kvferry runs with this run_dir")


def _numeric(endpoint: str) -> str:
    """``tcp://host:port`` with an address for the host: ZeroMQ binds to no host names."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        found = plain.getaddrinfo(host.strip("[]"), int(port), type=plain.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"cannot listen on {endpoint}: no such host ({error.strerror})") from None
    # IPv4 first, as a dialer that was given the same name tries it.
    family, *_, address = min(found, key=lambda entry: entry[0] != plain.AF_INET)
    literal = f"[{address[0]}]" if family == plain.AF_INET6 else address[0]
    return f"tcp://{literal}:{port}"
