"""Clients of a router: many at once, or one request after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bench.driving.quiet import no_collections
from bench.errors import RequestFailed
from bench.http import Address, Pool
from bench.routing.settings import RoutingFailed

REQUEST_SECONDS = 30.0
PAUSE_SECONDS = 0.01
"""Between requests one by one: what a worker has to do after its answer is done by then."""

_DONE = b"data: [DONE]"
_TAIL = 200


@dataclass(frozen=True)
class Burst:
    """``requests`` of a closed loop, answered within ``seconds``."""

    requests: int
    seconds: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class _Streamed:
    """An answer: when its first event came, and whether its last one did."""

    def __init__(self) -> None:
        self.first = 0.0
        self._status = 0
        self._last = b""

    def head(self, status: int, headers: Mapping[str, str], first_byte: float) -> None:
        """See bench.http.Answer."""
        self._status = status

    def body(self, piece: bytes, now: float) -> None:
        """See bench.http.Answer."""
        self.first = self.first or now
        self._last = (self._last + piece[-_TAIL:])[-_TAIL:]

    def check(self) -> None:
        """Raises RoutingFailed if it was not a whole stream."""
        if self._status != 200 or _DONE not in self._last:
            told = self._last.decode(errors="replace")
            raise RoutingFailed(f"a request was answered with {self._status}: {told}")


class Driver:
    """Connections to one router; use as ``async with``."""

    def __init__(self, base: str) -> None:
        """``base``: ``host:port``."""
        self.base = base
        host, _, port = base.rpartition(":")
        self._address = Address(host, int(port))
        self._pool = Pool(REQUEST_SECONDS)

    async def close(self) -> None:
        """Closes them."""
        await self._pool.close()

    async def burst(self, requests: Iterator[bytes], clients: int, seconds: float) -> Burst:
        """``clients`` send one after the other until ``requests`` or ``seconds`` are over.

        Raises RoutingFailed.
        """
        done = 0

        async def client() -> None:
            nonlocal done
            for request in requests:
                await self._ask(request)
                done += 1
                if time.monotonic() >= end:
                    return

        with no_collections():
            began = time.monotonic()
            end = began + seconds
            await asyncio.gather(*(client() for _ in range(clients)))
            return Burst(done, time.monotonic() - began)

    async def one_by_one(self, requests: Iterable[bytes]) -> list[float]:
        """Seconds until the first event of each. Raises RoutingFailed."""
        found = []
        with no_collections():
            for request in requests:
                began = time.monotonic()
                found.append((await self._ask(request)).first - began)
                await asyncio.sleep(PAUSE_SECONDS)
        return found

    async def _ask(self, request: bytes) -> _Streamed:
        answer = _Streamed()
        try:
            await self._pool.exchange(self._address, request, answer)
        except RequestFailed as error:
            raise RoutingFailed(f"{self.base}: {type(error).__name__}: {error}") from None
        answer.check()
        return answer
