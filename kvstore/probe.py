"""One small HTTP call between processes of one cluster: is it up, what does it say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_BYTES = 64 << 20
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Answer:
    """Status and body of an answer. Status 0: nothing answered, or nothing that is HTTP."""

    status: int
    body: bytes = b""


async def get(
    address: str, path: str, seconds: float, headers: Mapping[str, str] = _NO_HEADERS
) -> Answer:
    """``path`` from ``address`` (``http://host:port`` or ``unix:/path``) within ``seconds``."""
    return await _call("GET", address, path, seconds, headers, b"")


async def post(
    address: str, path: str, seconds: float, headers: Mapping[str, str], body: bytes
) -> Answer:
    """As ``get``, with ``body``, which is JSON."""
    fields = {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
    return await _call("POST", address, path, seconds, fields, body)


async def _call(
    method: str, address: str, path: str, seconds: float, headers: Mapping[str, str], body: bytes
) -> Answer:
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await _open(address)
            with closing(writer):
                lines = [f"{method} {path} HTTP/1.0", "Host: kvferry"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
                await writer.drain()
                return _parse(await _all(reader))
    except (OSError, TimeoutError):
        return Answer(0)


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    parts = urlsplit(address)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    while len(received) < MAX_BYTES and (chunk := await reader.read(65_536)):
        received += chunk
    return received


def _parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Answer(0)
    return Answer(int(words[1]), body)
