"""The client: sends OpenAI completions and keeps when everything happened.

All times are seconds of one monotonic clock. A request's ``intended`` time is when the load's
schedule wanted it sent; latencies count from there, so a client that falls behind shows its own
delay instead of hiding it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

Body = Mapping[str, Any]

_DONE = b"[DONE]"


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens: ``base`` is ``http://host:port``; ``socket`` a Unix socket's path."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict)
    socket: Path | None = None


@dataclass(frozen=True)
class Timeline:
    """One streamed request. ``error`` is empty for one that ended well.

    ``tokens`` are the arrivals of the chunks that carried a token, in order.
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


def failed(intended: float, error: str) -> Timeline:
    """A request that failed before it was streamed."""
    return Timeline(
        intended=intended,
        sent=intended,
        tokens=(),
        finished=time.monotonic(),
        status=0,
        error=error,
        prompt_tokens=0,
        completion_tokens=0,
        cached_tokens=0,
        headers={},
    )


class RequestFailed(Exception):
    """A request that had to succeed did not; the message says how."""


class Client:
    """One connection pool for each endpoint. Used by many tasks of one event loop."""

    def __init__(self, seconds: float) -> None:
        """``seconds``: after which any one request is given up."""
        self._timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=10)
        self._sessions: dict[Path | None, aiohttp.ClientSession] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def stream(self, endpoint: Endpoint, body: Body, intended: float) -> Timeline:
        """Send ``body`` to ``/v1/completions``, streaming. Failures are in the timeline."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        reading = _Reading(intended)
        try:
            async with (await self._session(endpoint)).post(
                f"{endpoint.base}/v1/completions",
                data=msgspec.json.encode(asked),
                headers={"content-type": "application/json", **endpoint.headers},
            ) as response:
                reading.status = response.status
                reading.headers = {name.lower(): value for name, value in response.headers.items()}
                if response.status != 200:
                    reading.error = f"status {response.status}: {(await response.text())[:300]}"
                else:
                    async for line in response.content:
                        reading.take(line, time.monotonic())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reading.error = f"{type(error).__name__}: {error}"
        return reading.timeline()

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

    async def _call(self, endpoint: Endpoint, method: str, path: str, content: bytes) -> bytes:
        headers = {"content-type": "application/json", **endpoint.headers}
        try:
            async with (await self._session(endpoint)).request(
                method, endpoint.base + path, data=content, headers=headers
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RequestFailed(f"{method} {path}: {type(error).__name__}: {error}") from None
        if response.status >= 300:
            shown = answer[:300].decode(errors="replace")
            raise RequestFailed(f"{method} {path}: status {response.status}: {shown}")
        return answer

    async def _session(self, endpoint: Endpoint) -> aiohttp.ClientSession:
        session = self._sessions.get(endpoint.socket)
        if session is None:
            path = endpoint.socket
            connector = (
                aiohttp.TCPConnector(limit=0)
                if path is None
                else aiohttp.UnixConnector(str(path), limit=0)
            )
            session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
            self._sessions[path] = await self._stack.enter_async_context(session)
        return session


def _object(path: str, answer: bytes) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(answer or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise RequestFailed(f"{path} answered no JSON object: {error}") from None


class _Reading:
    """A timeline in the making."""

    def __init__(self, intended: float) -> None:
        self.status = 0
        self.error = ""
        self.headers: Mapping[str, str] = {}
        self._intended = intended
        self._sent = time.monotonic()
        self._tokens: list[float] = []
        self._usage: Mapping[str, Any] = {}
        self._done = False

    def take(self, line: bytes, now: float) -> None:
        """One line of the event stream, which arrived at ``now``."""
        if not line.startswith(b"data:"):
            return
        content = line[5:].strip()
        if content == _DONE:
            self._done = True
            return
        event = msgspec.json.decode(content)
        if "error" in event:
            self.error = f"error in the stream: {event['error']}"[:300]
        if event.get("choices"):  # one chunk for a token, even for one whose text is empty
            self._tokens.append(now)
        self._usage = event.get("usage") or self._usage

    def timeline(self) -> Timeline:
        error = self.error
        if not error and not self._done:
            error = "the stream broke off"
        if not error and not self._tokens:
            error = "no token came"
        details = self._usage.get("prompt_tokens_details") or {}
        return Timeline(
            intended=self._intended,
            sent=self._sent,
            tokens=tuple(self._tokens),
            finished=time.monotonic(),
            status=self.status,
            error=error,
            prompt_tokens=self._usage.get("prompt_tokens", 0),
            completion_tokens=self._usage.get("completion_tokens", 0),
            cached_tokens=details.get("cached_tokens") or 0,
            headers=self.headers,
        )


async def at(moment: float) -> float:
    """Sleep until ``moment`` of the monotonic clock; returns it, the intended time."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))
    return moment
