"""What a decode worker's gate adds to an answer: how long ago, never when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest

from decode.gate import OUTCOME_HEADER, TIMES_HEADER, DecodeGate, Reports
from kvstore.gate_link import GateLink
from kvstore.messages import Begun, Outcome

TRANSFER, OTHER = bytes(16), bytes(15) + b"\x01"
OUTCOME = Outcome(TRANSFER, True, 0, 90, 900, 780.0)
BEGUN = Begun(TRANSFER, 100.0, 100.75)


class Link:
    """The connector's end: what it told so far."""

    def __init__(self, told: Sequence[Outcome | Begun]) -> None:
        self.told = list(told)

    def reports(self) -> list[Outcome | Begun]:
        told, self.told = self.told, []
        return told


def headers(
    told: Sequence[Outcome | Begun], status: int = 200, now: float = 101.0, slices: int = 1
) -> dict[bytes, Any]:
    """The headers that the gate adds to the answer of TRANSFER."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def scenario() -> list[tuple[bytes, bytes]]:
        gate = DecodeGate(app, clock=lambda: now)
        gate._reports = Reports(cast("GateLink", Link(told)), slices)
        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        telling = gate._telling(TRANSFER, send)
        await telling({"type": "http.response.start", "status": status, "headers": []})
        assert not sent
        await telling({"type": "http.response.body", "body": b""})
        assert [event["type"] for event in sent] == ["http.response.start", "http.response.body"]
        return list(sent[0]["headers"])

    return {name: json.loads(value) for name, value in asyncio.run(scenario())}


def test_both_reports_are_told_without_the_hosts_clock() -> None:
    told = headers([OUTCOME, BEGUN])
    assert told[TIMES_HEADER] == {"arrived_ms": 1000.0, "begun_ms": 250.0}
    assert told[OUTCOME_HEADER]["transfer"] == TRANSFER.hex()
    assert told[OUTCOME_HEADER]["wait_ms"] == 780.0


def test_a_leg_without_a_transfer_tells_its_times_alone() -> None:
    assert set(headers([BEGUN])) == {TIMES_HEADER}


def test_a_clock_that_seems_to_go_back_is_none_ago() -> None:
    assert headers([BEGUN], now=99.0)[TIMES_HEADER] == {"arrived_ms": 0.0, "begun_ms": 0.0}


@pytest.mark.parametrize("status", [200, 400])
def test_what_is_not_told_is_not_awaited_for_long(status: int) -> None:
    assert set(headers([OUTCOME], status)) == {OUTCOME_HEADER}
    assert headers([Begun(OTHER, 1.0, 2.0)], status) == {}


FAILED = Outcome(TRANSFER, False, 0, 30, 300, 790.0, "deadline")


def test_a_fetch_in_slices_is_told_when_all_of_them_have_ended() -> None:
    told = headers([OUTCOME, BEGUN, FAILED, BEGUN], slices=2)
    assert set(told) == {OUTCOME_HEADER, TIMES_HEADER}
    outcome = told[OUTCOME_HEADER]
    assert (outcome["shipped"], outcome["reason"]) == (False, "deadline")
    assert (outcome["received_tokens"], outcome["received_bytes"]) == (30, 1200)
    assert outcome["wait_ms"] == 790.0


def test_slices_are_waited_for() -> None:
    async def scenario() -> tuple[Outcome | None, Begun | None]:
        link = Link([])
        reports = Reports(cast("GateLink", link), 2)
        waiting = asyncio.create_task(reports.of(TRANSFER, 30.0))
        slices: list[list[Outcome | Begun]] = [[OUTCOME, BEGUN], [FAILED, BEGUN]]
        for told in slices:
            for _ in range(3):  # turns of the loop: enough for whoever waits to go on
                await asyncio.sleep(0)
            assert not waiting.done()
            link.told += told
            reports._take()
        return await waiting

    outcome, begun = asyncio.run(scenario())
    assert outcome is not None
    assert (outcome.shipped, begun) == (False, BEGUN)
