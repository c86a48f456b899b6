"""A prefill worker's gate: it ends a leg whose prompt the engine only ships.

Such a prompt lies in the engine's memory but for what decode computes. vLLM knows no request that
ends without a token, so the engine lets it wait and tells of it, and the gate answers for vLLM and
lets it believe that the caller has gone.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from kvstore.clock import Clock
from kvstore.cluster import WorkerSettings
from kvstore.exchange import App, Exchange, Receive, Scope, Send
from kvstore.gate import Gate, answer, named_transfer
from kvstore.gate_link import GateLink
from kvstore.handoff import PrefillReport, to_params
from kvstore.messages import Held


class PrefillGate(Gate):
    """The middleware of a prefill worker."""

    def __init__(self, app: App, clock: Clock = time.monotonic) -> None:
        super().__init__(app)
        self._clock = clock
        self._link: GateLink | None = None
        self._awaited: dict[bytes, asyncio.Future[Held]] = {}

    def listen(self, settings: WorkerSettings) -> None:
        """See Gate."""
        self._link = GateLink(gate=settings.addresses.gate)
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._take)
        self._take()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Gate."""
        transfer = named_transfer(scope)
        if transfer is None or transfer in self._awaited:
            await self._app(scope, receive, send)
            return
        held = self._awaited[transfer] = asyncio.get_running_loop().create_future()
        exchange = Exchange(receive, send)
        serving = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        try:
            await asyncio.wait({serving, held}, return_when=asyncio.FIRST_COMPLETED)
            if held.done() and not exchange.answered:
                exchange.end()
                await answer(send, 200, _body(held.result(), self._clock()))
            await serving
        finally:
            del self._awaited[transfer]
            serving.cancel()
            await asyncio.wait({serving})

    def _take(self) -> None:
        assert self._link is not None
        for report in self._link.reports():
            if isinstance(report, Held):
                awaited = self._awaited.get(report.transfer)
                if awaited and not awaited.done():
                    awaited.set_result(report)


def _body(held: Held, now: float) -> bytes:
    """An answer as vLLM's to a leg that found all of its prompt, as far as the proxy reads it."""
    usage = {"prompt_tokens_details": {"cached_tokens": held.tokens}}
    report = PrefillReport(max(0.0, now - held.taken_up) * 1000, held.tokens, 0)
    return msgspec.json.encode({"usage": usage, "kv_transfer_params": to_params(report)})
