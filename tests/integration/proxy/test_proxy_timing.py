"""What a client is told of where its time and its cached tokens came from."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.proxy_fakes import Stage, Worker, chat, completion, events, outcome, run, stage

pytestmark = pytest.mark.timeout(60)

ALL = ["route", "queue", "prefill", "ship", "handover", "first_decode"]
ASKED = {"stream": True, "stream_options": {"include_usage": True}}


def timing(headers: Any) -> dict[str, float]:
    """The entries of a Server-Timing header."""
    entries = re.findall(r"(\w+);dur=([0-9.]+)", headers["server-timing"])
    return {name: float(value) for name, value in entries}


def tell(s: Stage) -> None:
    """Both workers tell of their part, as real ones do."""
    s.p.cached = 64
    s.p.report = {"prefill_ms": 20.0, "gpu_tokens": 16, "dram_tokens": 48}
    s.d.outcome = {**outcome(), "wait_ms": 40.0}
    s.d.times = {"arrived_ms": 60.0, "begun_ms": 10.0}


async def let_go(worker: Worker) -> None:
    """Lets the worker answer a while after it was asked."""
    await worker.arrived.wait()
    await asyncio.sleep(0.1)
    assert worker.hold is not None
    worker.hold.set()


def test_a_stream_ends_with_the_whole_breakdown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tell(s)
            s.d.hold = asyncio.Event()
            holding = asyncio.create_task(let_go(s.d))
            begun = time.monotonic()
            async with s.post(chat(**ASKED)) as reply:
                seconds = time.monotonic() - begun
                header = timing(reply.headers)
                told = events(await reply.read())[-2]
            assert set(told) == {"id", "choices", "usage", "kvferry"}
            assert told["kvferry"]["cached"] == {"gpu": 16, "dram": 48}
            stages = told["kvferry"]["stages"]
            assert list(stages) == ALL
            assert min(stages.values()) >= 0
            assert sum(stages.values()) == pytest.approx(header["first_token"], abs=0.01)
            await holding
            assert 100 <= header["first_token"] <= seconds * 1000
            # The prefill leg had ended before the first token: the header knows all as well.
            assert header == {**header, **{name: pytest.approx(ms) for name, ms in stages.items()}}
            assert header["prefill_ended"] <= header["first_token"]
            assert stages["first_decode"] == pytest.approx(10.0, abs=0.01)
            await s.counted('kvferry_ttft_stage_seconds_count{stage="handover"} 1.0')

    run(scenario)


def test_while_prefill_is_under_way_the_header_tells_what_is_sure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tell(s)
            s.p.hold = asyncio.Event()
            async with s.post(completion(**ASKED), "completions") as reply:
                first = await reply.content.readuntil(b"\n\n")
                assert set(timing(reply.headers)) == {"first_token", "route"}
                s.p.hold.set()
                told = events(first + await reply.read())[-2]["kvferry"]
            assert list(told["stages"]) == ALL
            assert sum(told["stages"].values()) == pytest.approx(
                timing(reply.headers)["first_token"], abs=0.01
            )

    run(scenario)


def test_who_did_not_ask_for_usage_is_told_in_the_header_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tell(s)
            async with s.post(chat(stream=True)) as reply:
                assert "first_token" in timing(reply.headers)
                assert b"kvferry" not in await reply.read()

    run(scenario)


def test_a_whole_answer_tells_in_its_headers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tell(s)
            async with s.post(chat()) as reply:
                assert b"kvferry" not in await reply.read()
            assert reply.headers["x-kvferry-cached"] == "gpu=16, dram=48"
            header = timing(reply.headers)
            assert set(header) == {"prefill_ended", *ALL[:-1]}

    run(scenario)


def test_decode_alone_tells_its_own_queue_and_prefill(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, prefill=0) as s:
            s.d.outcome, s.d.cached = None, 32
            s.d.times = {"arrived_ms": 1.0, "begun_ms": 0.5}
            async with s.post(chat(**ASKED)) as reply:
                header = timing(reply.headers)
                told = events(await reply.read())[-2]["kvferry"]
            assert told["cached"] == {"gpu": 32, "dram": 0}
            assert list(told["stages"]) == ["route", "queue", "prefill"]
            assert set(header) == {"first_token", "route", "queue", "prefill"}

    run(scenario)


@pytest.mark.parametrize("told", [None, "rubbish"])
def test_workers_that_tell_nothing_cost_only_the_detail(tmp_path: Path, told: str | None) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            if told:
                s.p.report, s.d.times = {"prefill_ms": told}, {"arrived_ms": -1.0}
            async with s.post(chat(**ASKED)) as reply:
                assert reply.headers["x-kvferry-path"] == "disaggregated"
                stages = events(await reply.read())[-2]["kvferry"]["stages"]
            assert list(stages) == ["route", "prefill", "first_decode"]

    run(scenario)
