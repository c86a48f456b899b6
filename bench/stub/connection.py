"""One connection of a client to a stub: requests in, whatever answers them out."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping
from typing import cast

import httptools

LONGEST_BODY = 64 << 20
_LONGEST_HEAD = 64 << 10


class Connection(asyncio.Protocol):
    """A client sends one request at a time; another one before the answer ends the connection.

    ``everyone``: the server's open connections. What httptools calls back is public.
    """

    heeded: frozenset[bytes] = frozenset()
    """Names, in small letters, of the headers that :meth:`asked` is told."""

    def __init__(self, everyone: set[Connection]) -> None:
        self.transport: asyncio.Transport | None = None
        self._everyone = everyone
        self._parser = httptools.HttpRequestParser(self)
        self._answering = False
        self._bytes = 0
        self._keep_alive = True
        self._begin()

    @abstractmethod
    def asked(self, method: bytes, path: bytes, headers: Mapping[bytes, str], body: bytes) -> None:
        """A request is whole. It is answered by writing, and :meth:`answered` at the end."""

    def gone(self) -> None:
        """The connection ended, before an answer did or between two."""

    def answer(self, content: bytes) -> None:
        """The whole answer."""
        self.write(content)
        self.answered(whole=True)

    def answered(self, *, whole: bool) -> None:
        """All is written; or the connection is to be cut instead."""
        self._answering = False
        if self.transport is not None and not (whole and self._keep_alive):
            self.transport.close()

    def write(self, content: bytes) -> None:
        """A part of an answer."""
        assert self.transport is not None
        self.transport.write(content)

    def close(self) -> None:
        """Close the connection and give up what it waits for."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast("asyncio.Transport", transport)
        self._everyone.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._everyone.discard(self)
        self.gone()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
        if self._bytes > LONGEST_BODY + _LONGEST_HEAD:
            self.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """A piece of its path."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        name = name.lower()
        if name in self.heeded:
            self._headers[name] = value.decode("latin-1")
        elif name == b"expect":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._bytes = 0
        self._keep_alive = self._parser.should_keep_alive()
        if self._answering:
            self.close()
            return
        self._answering = True
        path = self._url.partition(b"?")[0]
        self.asked(self._parser.get_method(), path, self._headers, b"".join(self._pieces))

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, str] = {}
        self._pieces: list[bytes] = []
