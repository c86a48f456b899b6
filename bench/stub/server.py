"""The stub's HTTP: what is asked, and routes in a table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import uvloop

from bench.stub import wire
from bench.stub.config import StubConfig
from bench.stub.connection import Connection
from bench.stub.requests import BadRequest, asked
from bench.stub.serving import Service, Serving

_BACKLOG = 4096
_CHATS = {b"/v1/completions": False, b"/v1/chat/completions": True}
_KEY = b"authorization"


class _Asker(Connection):
    """A client of the stub."""

    heeded = frozenset({_KEY})

    def __init__(self, service: Service, everyone: set[Connection]) -> None:
        super().__init__(everyone)
        self._service = service
        self._serving: Serving | None = None

    def gone(self) -> None:
        """See Connection."""
        if self._serving is not None:
            self._serving.stop()

    def asked(self, method: bytes, path: bytes, headers: Mapping[bytes, str], body: bytes) -> None:
        """See Connection."""
        chat = _CHATS.get(path)
        if chat is None:
            route = _ROUTES.get((method, path))
            self.answer(route(self._service) if route else wire.refusal(404, "no such path"))
        else:
            self._complete(body, chat, headers.get(_KEY, ""))

    def _complete(self, body: bytes, chat: bool, key: str) -> None:
        service, config = self._service, self._service.config
        assert self.transport is not None
        number = service.number()
        try:
            request = asked(body, chat, key, config.output_tokens)
        except BadRequest as error:
            self.answer(wire.refusal(400, str(error)))
            return
        if config.error_every and number % config.error_every == 0:
            self.answer(wire.refusal(500, f"completion {number} is refused"))
            return
        dropped = bool(config.drop_every) and number % config.drop_every == 0
        self._serving = Serving(service, request, self.transport, dropped, self._ended)
        service.admit(self._serving)

    def _ended(self, whole: bool) -> None:
        self._serving = None
        self.answered(whole=whole)


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

    def __init__(self, server: asyncio.Server, connections: set[Connection]) -> None:
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
    connections: set[Connection] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Asker(service, connections), host, port, backlog=_BACKLOG
    )
    return StubServer(server, connections)


def run(config: StubConfig, host: str, port: int) -> None:
    """Serve until interrupted; the first line printed is the address. Raises OSError."""

    async def forever() -> None:
        server = await serve(config, host, port)
        print(f"http://{host}:{server.port}", flush=True)
        await asyncio.Event().wait()

    uvloop.run(forever())
