"""The stub's HTTP: one protocol object for a connection, routes in a table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools
import msgspec
import uvloop

from bench.stub import wire
from bench.stub.config import StubConfig
from bench.stub.requests import BadRequest, asked
from bench.stub.serving import Service, Serving

LONGEST_BODY = 64 << 20
_LONGEST_HEAD = 64 << 10
_BACKLOG = 4096
_CHATS = {b"/v1/completions": False, b"/v1/chat/completions": True}


class _Protocol(asyncio.Protocol):
    """One connection of a client, which sends one request at a time."""

    def __init__(self, service: Service, everyone: set[_Protocol]) -> None:
        self._service = service
        self._everyone = everyone
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._serving: Serving | None = None
        self._bytes = 0
        self._keep_alive = True
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._key = ""
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._everyone.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._everyone.discard(self)
        if self._serving is not None:
            self._serving.stop()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
        if self._bytes > LONGEST_BODY + _LONGEST_HEAD:
            self.close()

    def close(self) -> None:
        """Close the connection and give up what it waits for."""
        if self._transport is not None:
            self._transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """A piece of its path."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if len(name) == 13 and name.lower() == b"authorization":
            self._key = value.decode("latin-1")
        elif name.lower() == b"expect":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._bytes = 0
        self._keep_alive = self._parser.should_keep_alive()
        if self._serving is not None:
            self.close()  # a second request before the first one's answer
            return
        path = self._url.partition(b"?")[0]
        chat = _CHATS.get(path)
        if chat is None:
            route = _ROUTES.get((self._parser.get_method(), path))
            self._answer(route(self._service) if route else wire.refusal(404, "no such path"))
        else:
            self._complete(b"".join(self._pieces), chat)

    def _complete(self, body: bytes, chat: bool) -> None:
        service, config = self._service, self._service.config
        assert self._transport is not None
        number = service.number()
        try:
            request = asked(body, chat, self._key, config.output_tokens)
        except BadRequest as error:
            self._answer(wire.refusal(400, str(error)))
            return
        if config.error_every and number % config.error_every == 0:
            self._answer(wire.refusal(500, f"completion {number} is refused"))
            return
        dropped = bool(config.drop_every) and number % config.drop_every == 0
        self._serving = Serving(service, request, self._transport, dropped, self._ended)
        service.admit(self._serving)

    def _answer(self, content: bytes) -> None:
        self._write(content)
        self._ended(True)

    def _ended(self, whole: bool) -> None:
        self._serving = None
        if self._transport is not None and not (whole and self._keep_alive):
            self._transport.close()

    def _write(self, content: bytes) -> None:
        assert self._transport is not None
        self._transport.write(content)


def _models(service: Service) -> bytes:
    model = {"id": service.config.model, "object": "model", "root": service.config.model}
    return wire.whole(200, msgspec.json.encode({"object": "list", "data": [model]}))


def _health(_: Service) -> bytes:
    return wire.whole(200, b"{}")


def _metrics(service: Service) -> bytes:
    return wire.whole(200, service.metrics(), "text/plain; version=0.0.4")


def _reset(service: Service) -> bytes:
    service.cache.clear()
    return wire.whole(200, b'{"success":true}')


_ROUTES: dict[tuple[bytes, bytes], Callable[[Service], bytes]] = {
    (b"GET", b"/v1/models"): _models,
    (b"GET", b"/health"): _health,
    (b"GET", b"/metrics"): _metrics,
    (b"POST", b"/reset_prefix_cache"): _reset,
}


class StubServer:
    """A running stub."""

    def __init__(self, server: asyncio.Server, connections: set[_Protocol]) -> None:
        self._server = server
        self._connections = connections
        self.port: int = server.sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def drop(self) -> None:
        """Close every connection, as a server does with idle ones; it goes on listening."""
        for connection in list(self._connections):
            connection.close()

    async def close(self) -> None:
        """Stop listening and close every connection."""
        self._server.close()
        self.drop()
        await self._server.wait_closed()


async def serve(config: StubConfig, host: str = "127.0.0.1", port: int = 0) -> StubServer:
    """Listen; port 0 takes a free one. Raises OSError if the address is taken."""
    service = Service(config)
    connections: set[_Protocol] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Protocol(service, connections), host, port, backlog=_BACKLOG
    )
    return StubServer(server, connections)


def run(config: StubConfig, host: str, port: int) -> None:
    """Serve until interrupted; the first line printed is the address. Raises OSError."""

    async def forever() -> None:
        server = await serve(config, host, port)
        print(f"http://{host}:{server.port}", flush=True)
        await asyncio.Event().wait()

    uvloop.run(forever())
