"""Who gets through to a listening socket, over real TCP and ipc."""

from __future__ import annotations

import asyncio
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from kvstore.credentials import Credentials, CurvePair, PeerRole, load_or_create
from kvstore.errors import ConfigError
from kvstore.transport.curve import new_key_pair
from kvstore.transport.sockets import SocketOptions, dial, listen, uri_of

REPLY_MS = 5000
ANY_TCP = "zmq+tcp://127.0.0.1:0"
Ctx = zmq.Context[zmq.Socket[bytes]]
PROXIES: frozenset[PeerRole] = frozenset({"proxy"})
DECODERS: frozenset[PeerRole] = frozenset({"decode"})


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return load_or_create(tmp_path_factory.mktemp("state"))


@pytest.fixture
def context() -> Iterator[Ctx]:
    before = {thread.ident for thread in threading.enumerate()}
    context: Ctx = zmq.Context()
    yield context
    context.destroy(linger=0)
    for thread in threading.enumerate():
        if thread.name == "zap" and thread.ident not in before:
            thread.join(5)
            assert not thread.is_alive()


def served(listener: zmq.Socket[bytes], client: zmq.Socket[bytes]) -> str | None:
    """Sends one message each way; the role the listener saw."""
    assert client.poll(REPLY_MS, zmq.POLLOUT)
    client.send(b"ping")
    assert listener.poll(REPLY_MS)
    peer, message = listener.recv_multipart(copy=False)
    assert message.bytes == b"ping"
    listener.send_multipart([peer.bytes, b"pong"])
    assert client.poll(REPLY_MS)
    assert client.recv() == b"pong"
    try:
        role = message.get("User-Id")
    except zmq.ZMQError:
        return None
    assert isinstance(role, str)
    return role


def refused(listener: zmq.Socket[bytes], connect: Callable[[], zmq.Socket[bytes]]) -> set[int]:
    """Connects; returns the first verdict the listener reached about the client."""
    verdicts = (
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    )
    monitor = listener.get_monitor_socket(verdicts)
    client = connect()
    try:
        assert monitor.poll(REPLY_MS)
        event = recv_monitor_message(monitor)["event"]
        # What a refused client sends goes nowhere.
        assert not listener.poll(50)
        return {int(event)}
    finally:
        client.close(linger=0)
        listener.disable_monitor()


def test_the_right_role_is_served_and_known(context: Ctx, credentials: Credentials) -> None:
    listener = listen(context, ANY_TCP, "prefill", DECODERS, credentials)
    client = dial(context, uri_of(listener), "decode", "prefill", credentials)
    assert served(listener, client) == "decode"


def test_client_without_curve_is_refused(context: Ctx, credentials: Credentials) -> None:
    listener = listen(context, ANY_TCP, "prefill", DECODERS, credentials)

    def connect() -> zmq.Socket[bytes]:
        client = context.socket(zmq.DEALER)
        client.connect(uri_of(listener).removeprefix("zmq+"))
        client.send(b"let me in")
        return client

    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in refused(listener, connect)


def test_unknown_key_is_refused(context: Ctx, credentials: Credentials) -> None:
    listener = listen(context, ANY_TCP, "prefill", DECODERS, credentials)
    stranger = Credentials(
        credentials.secret, {**credentials.pairs, "decode": CurvePair(*new_key_pair())}
    )

    def connect() -> zmq.Socket[bytes]:
        return dial(context, uri_of(listener), "decode", "prefill", stranger)

    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in refused(listener, connect)


def test_right_key_of_the_wrong_role_is_refused_here_but_served_there(
    context: Ctx, credentials: Credentials
) -> None:
    ship = listen(context, ANY_TCP, "prefill", DECODERS, credentials)
    feed = listen(context, ANY_TCP, "prefill", PROXIES, credentials)

    def connect() -> zmq.Socket[bytes]:
        return dial(context, uri_of(ship), "proxy", "prefill", credentials)

    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in refused(ship, connect)
    proxy = dial(context, uri_of(feed), "proxy", "prefill", credentials)
    assert served(feed, proxy) == "proxy"


def test_dialer_refuses_a_listener_of_another_role(context: Ctx, credentials: Credentials) -> None:
    imposter = listen(context, ANY_TCP, "decode", PROXIES, credentials)

    def connect() -> zmq.Socket[bytes]:
        return dial(context, uri_of(imposter), "proxy", "prefill", credentials)

    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in refused(imposter, connect)


def test_ipc_serves_inside_a_private_folder_only(
    context: Ctx, credentials: Credentials, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    uri = f"zmq+ipc://{tmp_path}/a.ship"
    listener = listen(context, uri, "prefill", DECODERS, credentials)
    client = dial(context, uri, "decode", "prefill", credentials)
    assert served(listener, client) is None
    assert stat.S_ISSOCK((tmp_path / "a.ship").stat().st_mode)
    tmp_path.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"):
        dial(context, uri, "decode", "prefill", credentials)
    with pytest.raises(ConfigError, match="chmod 700"):
        listen(context, f"{uri}2", "prefill", DECODERS, credentials)


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_address_in_use_is_one_line(
    context: Ctx, credentials: Credentials, tmp_path: Path, kind: str
) -> None:
    tmp_path.chmod(0o700)
    uri = ANY_TCP if kind == "tcp" else f"zmq+ipc://{tmp_path}/a"
    first = listen(context, uri, "prefill", DECODERS, credentials)
    with pytest.raises(ConfigError, match="in use") as caught:
        listen(context, uri_of(first), "prefill", DECODERS, credentials)
    assert "\n" not in str(caught.value)
    client = dial(context, uri_of(first), "decode", "prefill", credentials)
    served(first, client)


def test_path_left_behind_by_a_killed_listener_is_taken(
    context: Ctx, credentials: Credentials, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "a"))
    uri = f"zmq+ipc://{tmp_path}/a"
    listener = listen(context, uri, "prefill", DECODERS, credentials)
    served(listener, dial(context, uri, "decode", "prefill", credentials))


@pytest.mark.parametrize(
    "uri",
    [
        "zmq+tcp://nohost",
        "zmq+tcp://h:99999",
        "zmq+tcp://no.such.host.invalid:1",
        "zmq+ipc://relative",
        "zmq+ipc:///no/such/folder/a",
        "zmq+ipc:///" + "x" * 200,
        "tcp://127.0.0.1:1",
        "http://127.0.0.1:1",
        "",
    ],
)
def test_malformed_addresses_are_config_errors(
    context: Ctx, credentials: Credentials, uri: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        listen(context, uri, "prefill", DECODERS, credentials)
    assert "\n" not in str(caught.value)


def test_a_peer_that_comes_back_under_its_name_takes_over(
    context: Ctx, credentials: Credentials
) -> None:
    listener = listen(context, ANY_TCP, "prefill", DECODERS, credentials)
    named = SocketOptions(routing_id=b"decode-0")
    first = dial(context, uri_of(listener), "decode", "prefill", credentials, named)
    served(listener, first)
    second = dial(context, uri_of(listener), "decode", "prefill", credentials, named)
    served(listener, second)
    listener.send_multipart([b"decode-0", b"for the newcomer"])
    assert second.poll(REPLY_MS)
    assert not first.poll(0)


def test_a_frame_beyond_the_limit_costs_the_sender_its_connection(
    context: Ctx, credentials: Credentials
) -> None:
    small = SocketOptions(max_frame_bytes=1000)
    listener = listen(context, ANY_TCP, "prefill", DECODERS, credentials, small)
    client = dial(context, uri_of(listener), "decode", "prefill", credentials)
    served(listener, client)
    monitor = listener.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    client.send(bytes(1001))
    assert monitor.poll(REPLY_MS)
    assert not listener.poll(0)
    listener.disable_monitor()


def test_sending_to_nobody_is_an_error_and_an_absent_peer_takes_no_messages(
    context: Ctx, credentials: Credentials, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    listener = listen(context, ANY_TCP, "prefill", DECODERS, credentials)
    with pytest.raises(zmq.ZMQError):
        listener.send_multipart([b"nobody", b"x"])
    client = dial(context, f"zmq+ipc://{tmp_path}/none", "decode", "prefill", credentials)
    with pytest.raises(zmq.Again):
        client.send(b"x", zmq.NOBLOCK)


def test_works_with_asyncio_and_several_listeners_of_one_context(credentials: Credentials) -> None:
    async def scenario() -> None:
        context = zmq.asyncio.Context()
        try:
            listeners = [
                listen(context, ANY_TCP, "prefill", PROXIES, credentials) for _ in range(3)
            ]
            for listener in listeners:
                client = dial(context, uri_of(listener), "proxy", "prefill", credentials)
                await asyncio.wait_for(client.send(b"x"), 5)
                frames = await asyncio.wait_for(listener.recv_multipart(), 5)
                assert frames[1] == b"x"
        finally:
            context.destroy(linger=0)

    asyncio.run(scenario())


def test_one_socket_too_many_is_told_in_one_line(context: Ctx, credentials: Credentials) -> None:
    context.set(zmq.MAX_SOCKETS, 1)
    with (
        dial(context, "zmq+tcp://127.0.0.1:1", "proxy", "decode", credentials),
        pytest.raises(
            ConfigError, match=r"cannot dial zmq\+tcp://127.0.0.1:2: Too many open files"
        ),
    ):
        dial(context, "zmq+tcp://127.0.0.1:2", "proxy", "decode", credentials)
