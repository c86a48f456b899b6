"""HTTP to workers: the proxy's only client sockets, over Unix sockets or TCP.

A connection is kept for later requests until shortly before the worker would close it. Closing a
reply that is not finished closes its connection, which is how a worker learns to abort.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from kvstore.credentials import TOKEN_HEADER
from kvstore.errors import WireError, WorkerLost
from kvstore.messages import Outcome, Times
from proxy.wire import decoded

TRANSFER_HEADER = "x-kvferry-transfer"
OUTCOME_HEADER = "x-kvferry-outcome"
TIMES_HEADER = "x-kvferry-times"
REQUEST_HEADER = "x-request-id"

MAX_REPLY_BYTES = 256 << 20
"""Longest reply that is held whole (one that is not streamed)."""

_KEEP_SECONDS = 3.0
"""Below the five seconds after which a worker closes an idle connection: no request may meet
one that is just being closed."""

_UNIX = "unix:"
_LOST = (aiohttp.ClientError, OSError, TimeoutError)


class Reply:
    """A worker's answer whose headers are here. Close it; closing early aborts the request."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    @property
    def content_type(self) -> str:
        """As the worker named it."""
        return self._response.headers.get("content-type", "application/json")

    def outcome(self) -> Outcome | None:
        """What became of the transfer; None if none took part. Raises WireError."""
        text = self._response.headers.get(OUTCOME_HEADER)
        if text is None:
            return None
        fields = decoded(text, dict[str, Any])
        try:
            transfer = bytes.fromhex(str(fields["transfer"]))
            fields = {**fields, "transfer": transfer, "type": "Outcome"}
            return msgspec.convert(fields, Outcome)
        except (msgspec.ValidationError, ValueError, KeyError) as error:
            raise WireError(f"malformed outcome of a transfer: {error}") from None

    def times(self) -> Times | None:
        """When the worker's engine began; None if it told nothing. Raises WireError."""
        text = self._response.headers.get(TIMES_HEADER)
        return None if text is None else decoded(text, Times)

    async def body(self, most: int = MAX_REPLY_BYTES) -> bytes:
        """All of it. Raises WorkerLost if it breaks off or is longer than ``most`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for part in self.chunks():
            parts.append(part)
            size += len(part)
            if size > most:
                self.close()
                raise WorkerLost("a worker's reply is too long", connected=True)
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises WorkerLost if it breaks off."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except _LOST as error:
            raise WorkerLost(f"reply broke off: {type(error).__name__}", connected=True) from None

    def close(self) -> None:
        """Gives the connection back if the reply was read to its end, otherwise closes it."""
        self._response.close()


class Upstream:
    """Sessions to any number of workers. Use as ``async with``; belongs to one event loop."""

    def __init__(self, token: str, connect_seconds: float, max_connections: int) -> None:
        self._token = token
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_seconds)
        self._max_connections = max_connections
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def post(
        self, worker: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Reply:
        """POST ``body`` as JSON to ``path`` of the worker at ``worker`` (http URI or unix:/path).

        Returns when the reply's headers are here. Raises WorkerLost.
        """
        fields = {**headers, "content-type": "application/json"}
        return await self._reply("POST", worker, path, fields, msgspec.json.encode(body))

    async def get(self, worker: str, path: str) -> Reply:
        """GET ``path`` of the worker at ``worker``, as ``post``."""
        return await self._reply("GET", worker, path, {}, None)

    async def _reply(
        self, method: str, worker: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Reply:
        session, base = self._session(worker)
        fields = {**headers, TOKEN_HEADER: self._token}
        try:
            response = await session.request(method, base + path, data=body, headers=fields)
        except _LOST as error:
            reached = not isinstance(
                error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
            )
            raise WorkerLost(
                f"no reply from a worker: {type(error).__name__}", connected=reached
            ) from None
        return Reply(response)

    def _session(self, worker: str) -> tuple[aiohttp.ClientSession, str]:
        local = worker.startswith(_UNIX)
        session = self._sessions.get(worker)
        if session is None:
            connector: aiohttp.BaseConnector
            if local:
                connector = aiohttp.UnixConnector(
                    worker.removeprefix(_UNIX),
                    limit=self._max_connections,
                    keepalive_timeout=_KEEP_SECONDS,
                )
            else:
                connector = aiohttp.TCPConnector(
                    limit=self._max_connections, keepalive_timeout=_KEEP_SECONDS
                )
            session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"accept-encoding": "identity"},
                read_bufsize=1 << 18,
            )
            self._sessions[worker] = session
        return session, "http://worker" if local else worker
