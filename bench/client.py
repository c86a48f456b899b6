"""The client: sends OpenAI completions and keeps when everything happened.

All times are seconds of one monotonic clock. A request's ``intended`` time is when the load's
schedule wanted it sent; latencies count from there, so a client that falls behind shows its own
delay instead of hiding it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from bench.errors import Malformed, RequestFailed
from bench.events import EventReader, Outcome
from bench.http import Address, Pool

__all__ = ["Body", "Client", "Endpoint", "Reply", "Timeline", "failed"]

Body = Mapping[str, Any]

_SHOWN = 300
_MOST_HEADS = 4096
"""Heads kept built; as many as there are tenants, each with its key."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens: ``base`` is ``http://host:port`` or ``https://host:port``, perhaps
    with a path before the API's; ``socket`` a Unix socket's path."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict)
    socket: Path | None = None

    @classmethod
    def at(cls, address: str, headers: Mapping[str, str]) -> Self:
        """``address``: as kvferry's processes have it, ``http://host:port`` or ``unix:/path``."""
        path = address.removeprefix("unix:")
        return cls(address, headers) if path == address else cls("http://here", headers, Path(path))


@dataclass(frozen=True)
class Reply:
    """A whole answer, whatever its status; headers by their names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Timeline:
    """One streamed request. ``error`` is empty for one that ended well.

    ``sent`` is when the client took the request up: connecting, where needed, counts after it.
    ``tokens`` are the arrivals of the events that carried a token, in order. ``usage`` is what the
    server counted, as it told it; the numbers beside it are 0 where it told none. ``text`` is
    filled for those who ask for it, ``trailer`` by a server that tells more at the end.
    """

    intended: float
    sent: float
    tokens: tuple[float, ...]
    finished: float
    status: int
    error: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    headers: Mapping[str, str]
    first_byte: float | None = None
    text: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    trailer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ttft(self) -> float:
        """Seconds from the intended send to the first token."""
        return self.tokens[0] - self.intended

    @property
    def gaps(self) -> list[float]:
        """Seconds between one token and the next."""
        return [
            later - earlier for earlier, later in zip(self.tokens, self.tokens[1:], strict=False)
        ]


def failed(intended: float, error: str, sent: float | None = None) -> Timeline:
    """A request that failed before it was streamed; ``sent``: where not just when intended."""
    return Timeline(
        intended=intended,
        sent=intended if sent is None else sent,
        tokens=(),
        finished=time.monotonic(),
        status=0,
        error=error,
        prompt_tokens=0,
        completion_tokens=0,
        cached_tokens=0,
        headers={},
    )


class Client:
    """Kept connections to any number of endpoints. Used by many tasks of one event loop."""

    def __init__(
        self, seconds: float, *, trailer: str = "kvferry", tls: ssl.SSLContext | None = None
    ) -> None:
        """``seconds``: after which any one request is given up. ``trailer``: the name of the object
        beside the last usage that timelines keep. ``tls``: for https, else the system's default.
        """
        self._pool = Pool(seconds, tls)
        self._trailer = trailer
        self._heads: dict[tuple[object, ...], tuple[Address, bytes]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pool.close()

    @property
    def connections(self) -> int:
        """How many connections are open, idle ones too."""
        return self._pool.connections

    async def stream(
        self,
        endpoint: Endpoint,
        body: Body,
        intended: float,
        *,
        path: str = "/v1/completions",
        keep_text: bool = False,
    ) -> Timeline:
        """Send ``body``, streaming. Failures are in the timeline."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        content = msgspec.json.encode(asked)
        return await self.send(endpoint, path, content, intended, keep_text=keep_text)

    async def send(
        self,
        endpoint: Endpoint,
        path: str,
        content: bytes,
        intended: float,
        *,
        keep_text: bool = False,
    ) -> Timeline:
        """Send an encoded body that asks for a stream. Failures are in the timeline."""
        answer = _Streamed(Outcome(self._trailer, keep_text))
        sent = time.monotonic()
        error = ""
        try:
            address, request = self._request(endpoint, "POST", path, content)
            await self._pool.exchange(address, request, answer)
            answer.finish()
        except RequestFailed as failure:
            error = f"{type(failure).__name__}: {failure}"
        return answer.timeline(intended, sent, error)

    async def post(
        self, endpoint: Endpoint, path: str, body: Body | None = None
    ) -> Mapping[str, Any]:
        """POST ``body`` as JSON; the answer's object, empty if there is none.

        Raises RequestFailed.
        """
        content = b"" if body is None else msgspec.json.encode(body)
        return _object(path, await self._call(endpoint, "POST", path, content))

    async def get(self, endpoint: Endpoint, path: str) -> Mapping[str, Any]:
        """GET an object, empty if there is none. Raises RequestFailed."""
        return _object(path, await self._call(endpoint, "GET", path, b""))

    async def text(self, endpoint: Endpoint, path: str) -> str:
        """GET a text. Raises RequestFailed."""
        return (await self._call(endpoint, "GET", path, b"")).decode(errors="replace")

    async def ask(self, endpoint: Endpoint, method: str, path: str, content: bytes) -> Reply:
        """Whatever is answered to an encoded body. Raises RequestFailed where nothing is."""
        answer = _Whole()
        try:
            address, request = self._request(endpoint, method, path, content)
            await self._pool.exchange(address, request, answer)
        except RequestFailed as error:
            raise RequestFailed(f"{method} {path}: {type(error).__name__}: {error}") from None
        return Reply(answer.status, answer.headers, b"".join(answer.pieces))

    async def _call(self, endpoint: Endpoint, method: str, path: str, content: bytes) -> bytes:
        reply = await self.ask(endpoint, method, path, content)
        if reply.status >= 300:
            shown = reply.body[:_SHOWN].decode(errors="replace")
            raise RequestFailed(f"{method} {path}: status {reply.status}: {shown}")
        return reply.body

    def _request(
        self, endpoint: Endpoint, method: str, path: str, content: bytes
    ) -> tuple[Address, bytes]:
        key = (method, path, endpoint.base, endpoint.socket, *endpoint.headers.items())
        known = self._heads.get(key)
        if known is None:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            known = self._heads[key] = _head(endpoint, method, path)
        address, head = known
        return address, b"%b%d\r\n\r\n%b" % (head, len(content), content)


def _head(endpoint: Endpoint, method: str, path: str) -> tuple[Address, bytes]:
    """The request's head up to the length of its body. Raises Malformed."""
    address, host, prefix = _place(endpoint)
    headers = {"host": host, "content-type": "application/json", **endpoint.headers}
    lines = [f"{method} {prefix}{path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    for line in lines:
        if "\r" in line or "\n" in line:
            raise Malformed(f"a line break in {line[:80]!r}")
    try:
        return address, "\r\n".join([*lines, "content-length: "]).encode("latin-1")
    except UnicodeEncodeError as error:
        raise Malformed(f"the path or a header cannot be sent: {error}") from None


def _place(endpoint: Endpoint) -> tuple[Address, str, str]:
    """Its address, the Host header and the path before the API's. Raises Malformed."""
    try:
        parts = urlsplit(endpoint.base)
        port = parts.port
    except ValueError as error:
        raise Malformed(f"{endpoint.base} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Malformed(f"{endpoint.base} is no http:// or https:// address")
    secure = parts.scheme == "https"
    address = Address(parts.hostname, port or (443 if secure else 80), secure, endpoint.socket)
    return address, parts.netloc.rpartition("@")[2], parts.path.rstrip("/")


def _object(path: str, answer: bytes) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(answer or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise RequestFailed(f"{path} answered no JSON object: {error}") from None


class _Whole:
    """An answer that is looked at when it is whole."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.pieces: list[bytes] = []

    def head(self, status: int, headers: Mapping[str, str], first_byte: float) -> None:
        """See Answer."""
        self.status = status
        self.headers = headers

    def body(self, piece: bytes, now: float) -> None:
        """See Answer."""
        self.pieces.append(piece)


class _Streamed:
    """A timeline in the making."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._reader = EventReader()
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._first_byte: float | None = None
        self._last = 0.0
        self._refusal = b""

    def head(self, status: int, headers: Mapping[str, str], first_byte: float) -> None:
        """See Answer."""
        self._status = status
        self._headers = headers
        self._first_byte = first_byte

    def body(self, piece: bytes, now: float) -> None:
        """See Answer."""
        self._last = now
        if self._status == 200:
            for event in self._reader.feed(piece):
                self._outcome.take(event, now)
        elif len(self._refusal) < _SHOWN:
            self._refusal += piece

    def finish(self) -> None:
        """The answer is whole. Raises Malformed."""
        for event in self._reader.finish():
            self._outcome.take(event, self._last)

    def timeline(self, intended: float, sent: float, error: str) -> Timeline:
        """What came of it; ``error`` is the exchange's own."""
        outcome = self._outcome
        return Timeline(
            intended=intended,
            sent=sent,
            tokens=tuple(outcome.tokens),
            finished=time.monotonic(),
            status=self._status,
            error=outcome.error or error or self._ended(),
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            cached_tokens=outcome.cached_tokens,
            headers=self._headers,
            first_byte=self._first_byte,
            text=outcome.text,
            usage=outcome.usage,
            trailer=outcome.trailer,
        )

    def _ended(self) -> str:
        if self._status != 200:
            return f"status {self._status}: {self._refusal[:_SHOWN].decode(errors='replace')}"
        return self._outcome.ended()
