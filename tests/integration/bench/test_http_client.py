"""The client against servers that answer as they like: framing, faults, deadlines, leaks."""

import asyncio
import gc
import ssl
import subprocess
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from bench import http
from bench.client import Client, Endpoint, Timeline
from bench.errors import RequestFailed
from bench.http import LONGEST_HEAD
from bench.stub import StubConfig, serve

STREAM = b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(STREAM), STREAM)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
    b"1\r\n%c\r\n" % byte for byte in STREAM
)
CLOSED = b"HTTP/1.0 200 OK\r\n\r\n" + STREAM

Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Use = Callable[[Client, Endpoint], Awaitable[None]]


async def asked(reader: asyncio.StreamReader) -> bytes:
    """One request; raises IncompleteReadError at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return head + await reader.readexactly(int(lengths[0].split(b":")[1]))


def answering(*answers: bytes, then_close: bool = False) -> tuple[Behave, list[int]]:
    """Answers each connection's requests in turn; the list counts requests by connection."""
    served: list[int] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(served)
        served.append(0)
        for answer in answers:
            await asked(reader)
            served[number] += 1
            writer.write(answer)
            await writer.drain()
        if not then_close:
            await reader.read()

    return behave, served


def against(
    behave: Behave,
    use: Use,
    *,
    seconds: float = 10.0,
    path: Path | None = None,
    server_tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
) -> None:
    async def go() -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await behave(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        if path is not None:
            server = await asyncio.start_unix_server(connected, str(path))
            endpoint = Endpoint("http://localhost", socket=path)
        else:
            server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=server_tls)
            port = server.sockets[0].getsockname()[1]
            scheme = "https" if server_tls else "http"
            endpoint = Endpoint(f"{scheme}://localhost:{port}")
        try:
            async with Client(seconds, tls=client_tls) as client:
                await use(client, endpoint)
            assert client.connections == 0
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        asyncio.run(go())
        gc.collect()


def streamed(behave: Behave, *, seconds: float = 10.0) -> Timeline:
    timelines: list[Timeline] = []

    async def use(client: Client, endpoint: Endpoint) -> None:
        timelines.append(await client.stream(endpoint, {}, 0.0))

    against(behave, use, seconds=seconds)
    return timelines[0]


@pytest.mark.parametrize("answer", [SIZED, CHUNKED + b"0\r\n\r\n", CLOSED])
def test_every_framing_is_read(answer: bytes) -> None:
    behave, _ = answering(answer, then_close=answer is CLOSED)
    timeline = streamed(behave)
    assert timeline.error == ""
    assert len(timeline.tokens) == 1
    assert timeline.first_byte is not None
    assert timeline.sent <= timeline.first_byte <= timeline.tokens[0] <= timeline.finished


def test_the_first_byte_is_timed_before_the_first_token() -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(SIZED[:5])
        await asyncio.sleep(0.1)
        writer.write(SIZED[5:])
        await reader.read()

    timeline = streamed(behave)
    assert timeline.error == ""
    assert timeline.first_byte is not None
    assert timeline.tokens[0] - timeline.first_byte > 0.05


def test_an_interim_answer_is_passed_over() -> None:
    behave, _ = answering(b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED)
    timeline = streamed(behave)
    assert (timeline.status, timeline.error) == (200, "")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (SIZED[:-20], "Cut"),
        (CHUNKED[:-20], "Cut"),
        (CHUNKED, "Cut"),
        (b"", "Cut"),
        (b"SSH-2.0-hello\r\n", "Malformed"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx", "Malformed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2 * LONGEST_HEAD, "head is longer"),
        (CLOSED + b"data: " + b"x" * (2 << 20), "line of the stream"),
        (CLOSED[:-20] + b"data: {]\n\n", "no completion's"),
        (CLOSED[: -len(STREAM)], "broke off"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nlate", "status 503: late"),
    ],
)
def test_what_goes_wrong_is_told(answer: bytes, error: str) -> None:
    behave, _ = answering(answer, then_close=True)
    assert error in streamed(behave).error


def test_a_connection_is_used_again_and_a_closed_one_replaced() -> None:
    # Each connection serves two requests, then closes: the client meets closed ones both idle and
    # in the moment of its writing.
    behave, served = answering(SIZED, SIZED, then_close=True)

    async def use(client: Client, endpoint: Endpoint) -> None:
        for _ in range(6):
            assert (await client.stream(endpoint, {}, 0.0)).error == ""

    against(behave, use)
    assert served == [2, 2, 2]


def test_a_kept_connection_that_dies_unanswered_is_replaced_once_only() -> None:
    connections: list[int] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        await asked(reader)
        if len(connections) == 1:
            writer.write(SIZED)
            await asked(reader)

    async def use(client: Client, endpoint: Endpoint) -> None:
        assert (await client.stream(endpoint, {}, 0.0)).error == ""
        assert "Cut" in (await client.stream(endpoint, {}, 0.0)).error

    against(behave, use)
    assert len(connections) == 2


def test_a_kept_connection_that_dies_within_the_answer_is_not_asked_again() -> None:
    behave, served = answering(SIZED, SIZED[:30], then_close=True)

    async def use(client: Client, endpoint: Endpoint) -> None:
        assert (await client.stream(endpoint, {}, 0.0)).error == ""
        assert "Cut" in (await client.stream(endpoint, {}, 0.0)).error

    against(behave, use)
    assert served == [2]


def test_an_answer_nobody_asked_for_ends_the_connection() -> None:
    behave, served = answering(SIZED + SIZED, SIZED)

    async def use(client: Client, endpoint: Endpoint) -> None:
        for _ in range(2):
            timeline = await client.stream(endpoint, {}, 0.0)
            assert (len(timeline.tokens), timeline.error) == (1, "")

    against(behave, use)
    assert served == [1, 1]


def test_a_server_that_says_nothing_is_given_up() -> None:
    behave, _ = answering(b"")
    timeline = streamed(behave, seconds=0.2)
    assert "Overdue" in timeline.error
    assert timeline.tokens == ()


def test_a_stream_that_never_ends_is_given_up_with_what_came() -> None:
    behave, _ = answering(CHUNKED)
    timeline = streamed(behave, seconds=0.3)
    assert "Overdue" in timeline.error
    assert len(timeline.tokens) == 1


def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_BODY", 1000)
    behave, _ = answering(CLOSED + STREAM * 100)
    assert "longer than 1000 bytes" in streamed(behave).error


def test_a_request_s_deadline_ends_with_it() -> None:
    behave, served = answering(SIZED, SIZED)

    async def use(client: Client, endpoint: Endpoint) -> None:
        assert (await client.stream(endpoint, {}, 0.0)).error == ""
        await asyncio.sleep(0.6)
        assert (await client.stream(endpoint, {}, 0.0)).error == ""

    against(behave, use, seconds=0.5)
    assert served == [2]


def test_a_client_that_closes_cuts_what_is_under_way() -> None:
    waiting: list[asyncio.Task[Timeline]] = []
    behave, served = answering(CLOSED)  # whole but for the end of the connection

    async def use(client: Client, endpoint: Endpoint) -> None:
        waiting.append(asyncio.create_task(client.stream(endpoint, {}, 0.0)))
        while served != [1]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)

    against(behave, use)
    assert "Cut" in waiting[0].result().error


def test_cancelling_closes_the_connection() -> None:
    gone: list[bytes] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        gone.append(b"asked")
        try:
            gone.append(await reader.read())
        except ConnectionError:
            gone.append(b"")

    async def use(client: Client, endpoint: Endpoint) -> None:
        task = asyncio.create_task(client.stream(endpoint, {}, 0.0))
        async with asyncio.timeout(5):
            while not gone:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while len(gone) < 2 or client.connections:
                await asyncio.sleep(0.01)

    against(behave, use)
    assert gone == [b"asked", b""]


def test_a_unix_socket(tmp_path: Path) -> None:
    behave, served = answering(SIZED, b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}')

    async def use(client: Client, endpoint: Endpoint) -> None:
        assert (await client.stream(endpoint, {}, 0.0)).error == ""
        assert await client.get(endpoint, "/x") == {"a": 1}

    against(behave, use, path=tmp_path / "s")
    assert served == [2]


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context that trusts it."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=str(cert))


def test_https_and_a_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path)
    behave, _ = answering(SIZED)

    async def use(client: Client, endpoint: Endpoint) -> None:
        assert (await client.stream(endpoint, {}, 0.0)).error == ""

    async def refused(client: Client, endpoint: Endpoint) -> None:
        assert "certificate" in (await client.stream(endpoint, {}, 0.0)).error.lower()

    against(behave, use, server_tls=server_tls, client_tls=client_tls)
    against(behave, refused, server_tls=server_tls)


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [
        (Endpoint("http://127.0.0.1:1"), "Unreachable"),
        (Endpoint("ftp://x"), "Malformed"),
        (Endpoint("http://[::1"), "Malformed"),
        (Endpoint("http://x:99999"), "Malformed"),
        (Endpoint("http://127.0.0.1:1", {"x": "a\r\nb: c"}), "line break"),
        (Endpoint("http://127.0.0.1:1", {"x": "€"}), "cannot be sent"),
        (Endpoint("http://x", socket=Path("/nowhere/socket")), "Unreachable"),
    ],
)
def test_an_address_that_leads_nowhere_is_in_the_timeline(endpoint: Endpoint, error: str) -> None:
    async def go() -> None:
        async with Client(5) as client:
            assert error in (await client.stream(endpoint, {}, 0.0)).error
            with pytest.raises(RequestFailed, match=error):
                await client.get(endpoint, "/x")

    asyncio.run(go())


def test_a_path_before_the_apis_and_headers_are_sent() -> None:
    seen: list[bytes] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await asked(reader))
        writer.write(SIZED)
        await reader.read()

    async def use(client: Client, endpoint: Endpoint) -> None:
        place = Endpoint(endpoint.base + "/behind/", {"authorization": "Bearer k"})
        content = b'{"stream":true}'
        assert (await client.send(place, "/v1/completions", content, 0.0)).error == ""

    against(behave, use)
    assert seen[0].startswith(b"POST /behind/v1/completions HTTP/1.1\r\nhost: localhost:")
    assert b"authorization: Bearer k\r\n" in seen[0]
    assert seen[0].endswith(b"\r\n\r\n" + b'{"stream":true}')


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_many_at_once_on_either_loop(run: Callable[[Awaitable[None]], None]) -> None:
    async def go() -> None:
        server = await serve(StubConfig(ttft_ms=20, itl_ms=2))
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}")
        async with Client(20) as client:
            for _ in range(2):
                asked = [client.stream(endpoint, {"prompt": "a"}, 0.0) for _ in range(50)]
                timelines = await asyncio.gather(*asked)
                assert {one.error for one in timelines} == {""}
                assert {len(one.tokens) for one in timelines} == {16}
            assert client.connections == 50
            server.drop()
            assert (await client.stream(endpoint, {"prompt": "a"}, 0.0)).error == ""
        assert client.connections == 0
        await server.close()

    run(go())
