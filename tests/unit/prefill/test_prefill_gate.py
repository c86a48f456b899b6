"""A leg that is only shipped is answered by the gate, and vLLM believes that its caller went."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from kvstore.gate_link import GateLink
from kvstore.handoff import PrefillReport, prefill_report
from kvstore.messages import Begun, Held
from prefill.gate import PrefillGate

TRANSFER, OTHER = bytes(range(16)), bytes(16)
HELD = Held(TRANSFER, 2496, 10.0)
BODY = {"type": "http.request", "body": b"{}", "more_body": False}


class Link:
    """The connector's end: what it told so far."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def reports(self) -> list[Any]:
        told, self.told = self.told, []
        return told


class Call:
    """A call to a gate in front of an application that answers when told, or when left."""

    def __init__(self, transfer: bytes = TRANSFER) -> None:
        self.link = Link()
        self.gate = PrefillGate(self.app, lambda: 10.25)
        self.gate._link = cast("GateLink", self.link)
        self.scope = {"headers": [(b"x-kvferry-transfer", transfer.hex().encode())]}
        self.sent: list[dict[str, Any]] = []
        self.seen: list[str] = []
        self.computed = asyncio.Event()
        self.caller_gone = asyncio.Event()
        self.served = asyncio.create_task(self.gate.serve(self.scope, self.receive, self.send))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == BODY
        gone = asyncio.create_task(receive())
        computed = asyncio.create_task(self.computed.wait())
        try:
            await asyncio.wait({gone, computed}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        if gone.done():
            self.seen.append(gone.result()["type"])
        computed.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"vLLM's"})
        if not gone.done():
            gone.cancel()
            await asyncio.wait({gone})

    async def receive(self) -> dict[str, Any]:
        if "body" not in self.seen:
            self.seen.append("body")
            return BODY
        await self.caller_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Any) -> None:
        self.sent.append(event)

    async def tell(self, *reports: Any) -> None:
        self.link.told += reports
        self.gate._take()
        await turns()

    @property
    def answer(self) -> bytes:
        return b"".join(event.get("body", b"") for event in self.sent)


async def turns() -> None:
    for _ in range(10):  # of the loop: enough for whoever waits to go on
        await asyncio.sleep(0)


def run(scenario: Any) -> None:
    async def whole() -> None:
        call = Call()
        await turns()
        await scenario(call)
        await asyncio.wait_for(call.served, 5)
        assert not call.gate._awaited

    asyncio.run(whole())


def test_a_held_prompt_ends_its_leg() -> None:
    async def scenario(call: Call) -> None:
        await call.tell(Held(OTHER, 7, 1.0), Begun(TRANSFER, 1.0, 2.0))
        assert not call.sent
        await call.tell(HELD, HELD)
        assert call.seen == ["body", "http.disconnect"]
        assert [event["type"] for event in call.sent] == [
            "http.response.start",
            "http.response.body",
        ]
        told = json.loads(call.answer)
        assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 2496
        assert prefill_report(told["kv_transfer_params"]) == PrefillReport(250.0, 2496, 0)

    run(scenario)


def test_what_is_computed_is_vllms_to_answer() -> None:
    async def scenario(call: Call) -> None:
        call.computed.set()
        await turns()
        await call.tell(HELD)  # too late: nobody waits for it
        assert call.answer == b"vLLM's"

    run(scenario)


def test_a_caller_that_goes_is_told_to_vllm() -> None:
    async def scenario(call: Call) -> None:
        call.caller_gone.set()
        await turns()
        assert call.seen == ["body", "http.disconnect"]

    run(scenario)


def test_a_stopped_call_stops_vllms() -> None:
    async def whole() -> None:
        call = Call()
        await turns()
        call.served.cancel()
        await asyncio.wait({call.served})
        await turns()
        assert not call.gate._awaited
        assert call.seen == ["body", "cancelled"]

    asyncio.run(whole())


@pytest.mark.parametrize("header", [b"", b"zz", b"ab"])
def test_a_call_without_a_transfer_is_vllms_alone(header: bytes) -> None:
    async def whole() -> None:
        reached = asyncio.Event()

        async def app(*what: Any) -> None:
            reached.set()

        async def nothing(*what: Any) -> Any:
            raise AssertionError

        scope = {"headers": [(b"x-kvferry-transfer", header)]}
        await PrefillGate(app).serve(scope, nothing, nothing)
        assert reached.is_set()

    asyncio.run(whole())
