"""A decode worker's gate: what became of a transfer, and when the engine began, in headers.

It also passes on that a transfer is to be abandoned. A response's start is held back until its
first body chunk: only then is it known what happened.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TypeVar

import msgspec

from kvstore.clock import Clock
from kvstore.cluster import WorkerSettings
from kvstore.exchange import App, Event, Receive, Scope, Send
from kvstore.gate import Gate, answer, named_transfer, parsed_transfer
from kvstore.gate_link import GateLink
from kvstore.messages import Abandon, Begun, Outcome, Times
from kvstore.slices import slice_address

OUTCOME_HEADER = b"x-kvferry-outcome"
TIMES_HEADER = b"x-kvferry-times"
ABANDON_PATH = "/kvferry/abandon/"

_KEPT_REPORTS = 4096
_REPORT_SECONDS = 0.05

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
            match report:
                case Outcome():
                    _keep(self._outcomes, report)
                case Begun():
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


class DecodeGate(Gate):
    """The middleware of a decode worker."""

    def __init__(self, app: App, clock: Clock = time.monotonic) -> None:
        super().__init__(app)
        self._clock = clock
        self._reports: Reports | None = None
        self._link: GateLink | None = None

    def listen(self, settings: WorkerSettings) -> None:
        """See Gate."""
        addresses, slices = settings.addresses, settings.slices
        abandon = [slice_address(addresses.abandon, number) for number in range(slices)]
        self._link = GateLink(gate=addresses.gate, abandon=abandon)
        self._reports = Reports(self._link, slices)
        self._reports.start()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Gate."""
        path: str = scope["path"]
        if path.startswith(ABANDON_PATH):
            await self._abandon(path.removeprefix(ABANDON_PATH), send)
            return
        transfer = named_transfer(scope)
        await self._app(scope, receive, self._telling(transfer, send) if transfer else send)

    async def _abandon(self, transfer_hex: str, send: Send) -> None:
        transfer = parsed_transfer(transfer_hex)
        if transfer is None:
            await answer(send, 400, b'{"error":"a transfer is 32 hex digits"}')
            return
        assert self._link is not None
        taken = self._link.send(Abandon(transfer))
        await answer(send, 202 if taken else 503, b"{}")

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
