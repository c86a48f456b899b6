"""HTTP/1.1 as a load generator needs it: little work for a request, exact times of arrival.

A connection carries one exchange at a time and goes back to its pool when the answer is whole.
The time of a piece is taken when the event loop hands it over, before anything is parsed.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import httptools

from bench.errors import EXHAUSTED, Cut, Malformed, Overdue, RequestFailed, Unreachable

LONGEST_HEAD = 64 << 10
LONGEST_BODY = 256 << 20
_CONNECT_SECONDS = 10.0
_OWN_LIMITS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL}
"""Descriptors and ports: what runs out here, whatever the server does."""


@dataclass(frozen=True)
class Address:
    """Where connections go; ``socket`` a Unix socket's path, which then counts alone."""

    host: str
    port: int
    secure: bool = False
    socket: Path | None = None


class Answer(Protocol):
    """Takes an answer as it comes. What it raises as RequestFailed ends the exchange."""

    def head(self, status: int, headers: Mapping[str, str], first_byte: float) -> None:
        """The status, and headers by their names in small letters."""

    def body(self, piece: bytes, now: float) -> None:
        """A piece of the body, which arrived at ``now``."""


class _Connection(asyncio.Protocol):
    """One connection; what httptools calls back is public."""

    def __init__(self, idle: list[_Connection], everyone: set[_Connection]) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle = idle
        self._everyone = everyone
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None
        self._now = 0.0
        self._reset()

    def _reset(self) -> None:
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body_bytes = 0
        self._pieces: list[bytes] = []
        self._first_byte: float | None = None
        self._in_body = False

    async def exchange(self, request: bytes, answer: Answer, seconds: float) -> None:
        """Send ``request`` and pass what comes to ``answer`` until it is whole.

        Raises RequestFailed; then, and when cancelled, the connection is closed.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        done = self._done = loop.create_future()
        self._answer = answer
        self._reset()
        timer = loop.call_later(seconds, self._overdue, seconds)
        try:
            self._transport.write(request)
            await done
        finally:
            timer.cancel()
            if self._answer is answer:
                self.abort()

    def abort(self) -> None:
        """Close at once; an exchange under way fails when the loop tells that it is closed."""
        if self in self._idle:
            self._idle.remove(self)
        self._in_body = False  # a body that goes until the close is cut, not whole
        if self._transport is not None:
            self._transport.abort()

    @property
    def closing(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._everyone.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._everyone.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        if self._in_body and exc is None and self._until_close():
            self._end(None)
        else:
            told = f": {exc}" if exc else ""
            answered = self._first_byte is not None
            self._end(Cut(f"the server closed the connection{told}", answered))
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._now = time.monotonic()
        if self._answer is None:  # nobody asked: out of step, or the server's good-bye
            self.abort()
            return
        if self._first_byte is None:
            self._first_byte = self._now
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._pieces:
                self._pass_on()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Malformed(f"the answer is no HTTP: {error}"))
            self.abort()
        if not self._in_body and self._answer is not None and self._head_bytes > LONGEST_HEAD:
            self._fail(Malformed(f"the answer's head is longer than {LONGEST_HEAD} bytes"))

    def on_message_begin(self) -> None:
        """A status line begins."""
        if self._answer is None:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        status = self._parser.get_status_code()
        if self._answer is None or status < 200:
            return
        self._in_body = True
        assert self._first_byte is not None
        self._answer.head(status, self._headers, self._first_byte)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it only was the server's "continue"."""
        if not self._in_body:
            self._headers = {}
            self._head_bytes = 0
            return
        self._pass_on()
        if self._answer is None:
            return
        self._end(None)
        if self._parser.should_keep_alive():
            self._idle.append(self)
        else:
            self.abort()

    def _pass_on(self) -> None:
        # All that came at once in one piece: servers put every event in a chunk of its own.
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._answer is None:
            return
        self._body_bytes += len(body)
        try:
            if self._body_bytes > LONGEST_BODY:
                raise Malformed(f"the answer is longer than {LONGEST_BODY} bytes")
            self._answer.body(body, self._now)
        except RequestFailed as error:
            self._fail(error)

    def _until_close(self) -> bool:
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        return not framed

    def _overdue(self, seconds: float) -> None:
        self._fail(Overdue(f"no whole answer after {seconds:.3g} s"))

    def _fail(self, error: RequestFailed) -> None:
        self._end(error)
        self.abort()

    def _end(self, error: RequestFailed | None) -> None:
        self._answer = None
        self._in_body = False
        done, self._done = self._done, None
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


class Pool:
    """Connections to any number of targets, kept alive between exchanges.

    As many as there are exchanges at once: a load's schedule decides, not the pool. Used by many
    tasks of one event loop; ``close`` leaves no connection open.
    """

    def __init__(self, seconds: float, context: ssl.SSLContext | None = None) -> None:
        """``seconds``: for one exchange with its connecting. ``context``: TLS, else the default."""
        self._seconds = seconds
        self._context = context
        self._idle: dict[Address, list[_Connection]] = {}
        self._open: set[_Connection] = set()

    async def exchange(self, address: Address, request: bytes, answer: Answer) -> None:
        """Send ``request``, a whole HTTP/1.1 request, and pass the answer on as it comes.

        A kept connection that the server had closed is replaced once, if no byte of the answer had
        come. Raises RequestFailed.
        """
        end = time.monotonic() + self._seconds
        idle = self._idle.setdefault(address, [])
        kept = idle.pop() if idle else None
        if kept is not None and not kept.closing:
            try:
                return await kept.exchange(request, answer, self._seconds)
            except Cut as error:
                if error.answered:
                    raise
        connection = await self._connect(address, idle)
        return await connection.exchange(request, answer, end - time.monotonic())

    async def close(self) -> None:
        """Close every connection; exchanges under way fail."""
        remaining = list(self._open)
        for connection in remaining:
            connection.abort()
        await asyncio.gather(*(connection.lost for connection in remaining))

    @property
    def connections(self) -> int:
        """How many are open, idle ones too."""
        return len(self._open)

    async def _connect(self, address: Address, idle: list[_Connection]) -> _Connection:
        connection = _Connection(idle, self._open)
        try:
            async with asyncio.timeout(min(_CONNECT_SECONDS, self._seconds)):
                await self._open_transport(address, connection)
        except TimeoutError:
            connection.abort()
            raise Unreachable(f"cannot connect to {_told(address)}: no answer") from None
        except (OSError, UnicodeError) as error:
            own = f" ({EXHAUSTED})" if getattr(error, "errno", 0) in _OWN_LIMITS else ""
            raise Unreachable(f"cannot connect to {_told(address)}: {error}{own}") from None
        return connection

    async def _open_transport(self, address: Address, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        context = self._tls() if address.secure else None
        if address.socket is None:
            await loop.create_connection(
                lambda: connection, address.host, address.port, ssl=context
            )
        else:
            name = address.host if address.secure else None
            await loop.create_unix_connection(
                lambda: connection, str(address.socket), ssl=context, server_hostname=name
            )

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context()
        return self._context


def _told(address: Address) -> str:
    return str(address.socket) if address.socket else f"{address.host}:{address.port}"
