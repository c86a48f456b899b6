"""The ASGI middleware in front of a worker's vLLM server.

It lets only kvferry's own proxies in, tells in response headers what became of a transfer and how
long ago the engine began with the request, and passes on that a transfer is to be abandoned. vLLM
loads it by name (``--middleware``) and gives it nothing, so it finds its settings where vLLM keeps
the connector's.

A response's start is held back until its first body chunk: only then is it known what happened.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvstore.clock import Clock
from kvstore.credentials import load_or_create
from kvstore.engine_facts import worker_settings
from kvstore.gate_link import GateLink
from kvstore.messages import Abandon, Begun, Outcome, Times
from kvstore.slices import slice_address

TOKEN_HEADER = b"x-kvferry-token"
TRANSFER_HEADER = b"x-kvferry-transfer"
OUTCOME_HEADER = b"x-kvferry-outcome"
TIMES_HEADER = b"x-kvferry-times"
ABANDON_PATH = "/kvferry/abandon/"

_OPEN_PATHS = frozenset({"/health"})
_KEPT_REPORTS = 4096
_REPORT_SECONDS = 0.05

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("kvferry.gate")
Report = TypeVar("Report", Outcome, Begun)


class Reports:
    """What the connectors told of the latest requests, by transfer. Bounded, oldest dropped first.

    Each of a worker's ``slices`` has a connector, and a request's ``Begun`` is the last that one
    tells of it.
    """

    def __init__(self, link: GateLink, slices: int) -> None:
        self._link = link
        self._slices = slices
        self._outcomes: OrderedDict[bytes, list[Outcome]] = OrderedDict()
        self._begun: OrderedDict[bytes, list[Begun]] = OrderedDict()
        self._awaited: dict[bytes, asyncio.Event] = {}

    def start(self) -> None:
        """Begin to listen, on the running event loop."""
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._take)
        self._take()

    async def of(self, transfer: bytes, seconds: float) -> tuple[Outcome | None, Begun | None]:
        """Both reports, waiting up to ``seconds`` for them; None for what is not known then."""
        self._take()
        if len(self._begun.get(transfer, ())) < self._slices:
            event = self._awaited.setdefault(transfer, asyncio.Event())
            try:
                async with asyncio.timeout(seconds):
                    await event.wait()
            except TimeoutError:
                pass
            finally:
                self._awaited.pop(transfer, None)
        outcomes, begun = self._outcomes.pop(transfer, []), self._begun.pop(transfer, [])
        # What only some of the slices have told is not known: another may have failed.
        told = _merged(outcomes) if len(outcomes) == self._slices else None
        return told, begun[0] if begun else None

    def _take(self) -> None:
        for report in self._link.reports():
            if isinstance(report, Outcome):
                _keep(self._outcomes, report)
                continue
            _keep(self._begun, report)
            event = self._awaited.get(report.transfer)
            if event and len(self._begun[report.transfer]) == self._slices:
                event.set()


def _keep(kept: OrderedDict[bytes, list[Report]], report: Report) -> None:
    kept.setdefault(report.transfer, []).append(report)
    while len(kept) > _KEPT_REPORTS:
        kept.popitem(last=False)


def _merged(outcomes: list[Outcome]) -> Outcome:
    """What became of a fetch whose slices ended so: one that failed fails it."""
    return Outcome(
        transfer=outcomes[0].transfer,
        shipped=all(one.shipped for one in outcomes),
        local_tokens=outcomes[0].local_tokens,
        received_tokens=min(one.received_tokens for one in outcomes),
        received_bytes=sum(one.received_bytes for one in outcomes),
        wait_ms=max(one.wait_ms for one in outcomes),
        reason=next((one.reason for one in outcomes if one.reason is not None), None),
    )


class Gate:
    """The middleware; one per worker's API process."""

    def __init__(self, app: App, clock: Clock = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._token = b""
        self._reports: Reports | None = None
        self._link: GateLink | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Nothing of ours speaks anything but HTTP; a websocket would come in unasked.
            if scope["type"] == "lifespan":
                self._open(scope)
                await self._app(scope, receive, send)
            return
        if self._link is None:
            self._open(scope)
        headers = dict(scope["headers"])
        path: str = scope["path"]
        if path not in _OPEN_PATHS and not self._admits(headers):
            await _answer(send, 401, b'{"error":"only this cluster\'s proxies may call a worker"}')
        elif path.startswith(ABANDON_PATH):
            await self._abandon(path.removeprefix(ABANDON_PATH), send)
        elif TRANSFER_HEADER in headers:
            transfer = _transfer(headers[TRANSFER_HEADER].decode("latin-1"))
            await self._app(scope, receive, self._telling(transfer, send) if transfer else send)
        else:
            await self._app(scope, receive, send)

    def _open(self, scope: Scope) -> None:
        """Read the settings off the application and begin to listen to the connector."""
        args = scope["app"].state.args
        settings = worker_settings(args.kv_transfer_config.kv_connector_extra_config)
        self._token = load_or_create(Path(settings.state_dir)).http_token().encode()
        addresses, slices = settings.addresses, settings.slices
        abandon = [slice_address(addresses.abandon, number) for number in range(slices)]
        self._link = GateLink(gate=addresses.gate, abandon=abandon)
        self._reports = Reports(self._link, slices)
        self._reports.start()

    def _admits(self, headers: dict[bytes, bytes]) -> bool:
        return hmac.compare_digest(headers.get(TOKEN_HEADER, b""), self._token)

    async def _abandon(self, transfer_hex: str, send: Send) -> None:
        transfer = _transfer(transfer_hex)
        if transfer is None:
            await _answer(send, 400, b'{"error":"a transfer is 32 hex digits"}')
            return
        assert self._link is not None
        taken = self._link.send(Abandon(transfer))
        await _answer(send, 202 if taken else 503, b"{}")

    def _telling(self, transfer: bytes, send: Send) -> Send:
        """``send``, with what the connector told among the response's headers."""
        held: list[Event] = []

        async def telling(event: Event) -> None:
            if event["type"] == "http.response.start":
                held.append(event)
                return
            if held:
                start = held.pop()
                await send(await self._with_reports(start, transfer))
            await send(event)

        return telling

    async def _with_reports(self, start: Event, transfer: bytes) -> Event:
        assert self._reports is not None
        patience = _REPORT_SECONDS if start["status"] == 200 else 0.0
        outcome, begun = await self._reports.of(transfer, patience)
        told = []
        if outcome is not None:
            fields = {**msgspec.to_builtins(outcome), "transfer": transfer.hex()}
            told.append((OUTCOME_HEADER, msgspec.json.encode(fields)))
        if begun is not None:
            told.append((TIMES_HEADER, msgspec.json.encode(_times(begun, self._clock()))))
        return {**start, "headers": [*start["headers"], *told]}


def _times(begun: Begun, now: float) -> Times:
    ago = [max(0.0, now - at) * 1000 for at in (begun.arrived, begun.begun)]
    return Times(*ago)


def _transfer(text: str) -> bytes | None:
    try:
        transfer = bytes.fromhex(text)
    except ValueError:
        return None
    return transfer if len(transfer) == 16 else None


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
