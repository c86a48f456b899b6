"""Errands of a worker's gate to the scheduler half of its own engine.

vLLM passes nothing to a connector while its engine is idle but requests. So what holds for tenants
goes with a request of one token, which the application is called for as if somebody had sent it.
The scheduler half hears it when it joins the engine's queue, in the order of sending; so one that
is not answered soon, since the engine is busy, is given up, and a next one is sent while it is not
known that all memory of flushed tenants is overwritten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from itertools import islice

import msgspec

from kvstore.errors import WireError
from kvstore.exchange import App, Event, Exchange, Scope, finish
from kvstore.handoff import TenancyTicket, tenancy_report, to_params
from kvstore.messages import Standing
from kvstore.standings import PART

ERRAND_SECONDS = 1.0
"""How long an answer is awaited."""

AGAIN_SECONDS = 0.2
"""How long after one errand the next one is sent."""

GIVE_UP_SECONDS = 30.0
"""After the last that was to be said; nothing more is heard of the engine: it goes on by itself."""

_PATH = "/v1/completions"
_MAX_ANSWER = 64 << 10

log = logging.getLogger("kvferry.gate")


class Errands:
    """For one event loop. ``app``: what the gate stands before; it serves ``model``."""

    def __init__(self, app: App, model: str) -> None:
        self._app = app
        self._model = model
        self._untaken: dict[str, Standing] = {}
        self._news = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._until = 0.0

    def send(self, scope: Scope, standings: Iterable[Standing]) -> None:
        """Have the engine hear these; returns at once. ``scope``: of any call of the same app."""
        self._untaken |= {standing.tag: standing for standing in standings}
        self._news.set()
        self._until = asyncio.get_running_loop().time() + GIVE_UP_SECONDS
        if self._untaken and (self._running is None or self._running.done()):
            self._running = asyncio.create_task(self._run(scope))

    async def _run(self, scope: Scope) -> None:
        while asyncio.get_running_loop().time() < self._until:
            self._news.clear()
            standings = tuple(islice(self._untaken.values(), PART))
            flushing = await self._errand(scope, standings)
            for told in standings:
                if self._untaken.get(told.tag) == told:
                    del self._untaken[told.tag]
                    if flushing is None:  # Perhaps it was heard: others first, now.
                        self._untaken[told.tag] = told
            if flushing == 0 and not self._untaken:
                return
            if not self._untaken or flushing is None:
                await self._pause()
        log.error("the engine has not said in time that a flushed tenant's memory is overwritten")

    async def _pause(self) -> None:
        """Until there is news; a moment at most."""
        try:
            async with asyncio.timeout(AGAIN_SECONDS):
                await self._news.wait()
        except TimeoutError:
            return

    async def _errand(self, scope: Scope, standings: tuple[Standing, ...]) -> int | None:
        """Tenants that are being flushed; None where no answer came, for whatever reason."""
        call = _Call(self._body(standings))
        exchange = Exchange(call.receive, call.send)
        serving = asyncio.ensure_future(
            self._app(_scope_of(scope, call.body), exchange.receive, exchange.send)
        )
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait(
                {serving, news}, timeout=ERRAND_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            exchange.end()
            await finish(serving)
        finally:
            news.cancel()
            serving.cancel()
        return call.flushing()

    def _body(self, standings: tuple[Standing, ...]) -> bytes:
        fields = {"model": self._model, "prompt": [0], "max_tokens": 1, "temperature": 0}
        return msgspec.json.encode(
            {**fields, "kv_transfer_params": to_params(TenancyTicket(standings))}
        )


class _Call:
    """The errand's caller."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self._sent = False
        self._status = 0
        self._answer = b""

    async def receive(self) -> Event:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await asyncio.Event().wait()  # for ever: the exchange is ended
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        self._status = event.get("status", self._status)
        self._answer = (self._answer + event.get("body", b""))[:_MAX_ANSWER]

    def flushing(self) -> int | None:
        if self._status != 200:
            return None
        try:
            answer = msgspec.json.decode(self._answer)
            report = tenancy_report(answer.get("kv_transfer_params"))
        except (msgspec.DecodeError, AttributeError, WireError):
            return None
        return report.flushing if report else None


def _scope_of(scope: Scope, body: bytes) -> Scope:
    """Of a call of the same application, the scope of an errand."""
    headers = [
        (b"host", b"kvferry"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    own = {"path": _PATH, "raw_path": _PATH.encode(), "method": "POST", "headers": headers}
    return {**scope, **own, "query_string": b""}
