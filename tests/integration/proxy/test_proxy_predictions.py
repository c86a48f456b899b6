"""Operators are told what a request was to find and take; metrics compare; nobody else is told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.metrics import Metrics, Story
from proxy.pace import Pace, Prediction
from proxy.usage import Account
from tests.support.proxy_fakes import (
    CHUNK,
    PROMPT_TOKENS,
    TOKEN,
    Stage,
    Worker,
    chat,
    events,
    outcome,
    run,
    stage,
)

pytestmark = pytest.mark.timeout(60)

OPERATOR = {"x-kvferry-token": TOKEN}
ASKED = {"stream": True, "stream_options": {"include_usage": True}}
PREFILL_SECONDS = 0.2


def tell(s: Stage, held: int) -> None:
    """Both workers tell of their part, as real ones do that held so much."""
    s.p.cached = held
    s.p.report = {"prefill_ms": 1000 * PREFILL_SECONDS, "gpu_tokens": held, "dram_tokens": 0}
    s.d.outcome = {**outcome(), "wait_ms": 1.0}
    s.d.times = {"arrived_ms": 2.0, "begun_ms": 1.0}


async def streamed(s: Stage, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plan in the header, and what the stream's end tells."""
    async with s.post(chat(**ASKED), **options) as reply:
        told = events(await reply.read())[-2]["kvferry"]
        return json.loads(reply.headers.get("x-kvferry-plan", "{}")), told


async def slowly(worker: Worker) -> None:
    """Answers as late as what it tells says."""
    worker.arrived.clear()
    worker.hold = asyncio.Event()
    await worker.arrived.wait()
    await asyncio.sleep(PREFILL_SECONDS)
    worker.hold.set()


def test_what_prefill_holds_is_foretold_to_operators(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.directory.holds(s.p, 4)
            tell(s, held=64)
            plan, told = await streamed(s, headers=OPERATOR)
            assert told["predicted"] == plan["predicted"]
            assert told["predicted"]["cached"] == 64 == sum(told["cached"].values())
            assert set(told["predicted"]) == {"cached", "ttft", "queue", "prefill", "after"}
            await s.counted(
                'kvferry_predicted_cached_total{outcome="equal",path="disaggregated"} 1.0'
            )
            await s.counted('kvferry_predicted_first_token_ratio_count{path="disaggregated"} 1.0')
            async with s.post(chat(), headers=OPERATOR) as reply:
                await reply.read()
            whole = json.loads(reply.headers["x-kvferry-plan"])
            assert whole["predicted"]["cached"] == 96  # the first one computed the rest

    run(scenario)


def test_nobody_else_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tell(s, held=0)
            plan, told = await streamed(s)
            assert not plan
            assert set(told) == {"stages", "cached"}

    run(scenario)


def test_what_was_not_held_after_all_is_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.directory.holds(s.p, 4)
            tell(s, held=16)
            await streamed(s)
            await s.counted(
                'kvferry_predicted_cached_total{outcome="different",path="disaggregated"} 1.0'
            )

    run(scenario)


def test_of_dram_only_whole_chunks_are_foretold(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.directory.holds(s.p, 3, tier="dram")
            tell(s, held=0)
            plan, _ = await streamed(s, headers=OPERATOR)
            assert plan["prefill"][0]["dram"] == 48
            assert plan["predicted"]["cached"] == CHUNK == 32

    run(scenario)


def test_decode_alone_is_foretold_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, prefill=0) as s:
            s.directory.holds(s.d, 2)
            s.d.outcome, s.d.cached = None, 32
            s.d.times = {"arrived_ms": 1.0, "begun_ms": 0.5}
            plan, told = await streamed(s, headers=OPERATOR)
            assert plan["predicted"]["cached"] == 32
            assert told["predicted"]["after"] == 0

    run(scenario)


def test_slow_workers_are_expected_to_be_slow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tell(s, held=0)
            predicted, actual = [], []
            for at in range(6):
                s.d.tokens = [at] * PROMPT_TOKENS  # what one computed is held for the next
                slow = asyncio.create_task(slowly(s.p))
                s.d.hold = asyncio.Event()
                slow.add_done_callback(lambda _: s.d.hold.set() if s.d.hold else None)
                _, told = await streamed(s, headers=OPERATOR)
                predicted.append(told["predicted"])
                actual.append(sum(told["stages"].values()))
                await slow
            assert predicted[0]["ttft"] < 100 < actual[0]
            assert predicted[-1]["prefill"] == pytest.approx(1000 * PREFILL_SECONDS, rel=0.3)
            assert predicted[-1]["ttft"] == pytest.approx(actual[-1], rel=0.5)

    run(scenario)


def test_only_streams_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any other answer nobody knows when its first token came."""
    learnt: list[Prediction] = []

    def learn(self: Pace, made: Prediction, *told: object) -> None:
        learnt.append(made)

    monkeypatch.setattr(Pace, "learn", learn)

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            tell(s, held=0)
            async with s.post(chat()) as reply:
                await reply.read()
            assert not learnt
            await streamed(s)
            assert len(learnt) == 1

    run(scenario)


def test_what_is_compared_is_the_foretold_over_the_real() -> None:
    metrics = Metrics()
    made = Prediction("disaggregated", 100, 64, waited=0.5, before=0.5, prefill=0.5, after=0.5)
    account = Account(100, 1, 64)
    story = Story("r", "t", "chat", 1.0, "disaggregated", first_token=2.0, account=account)
    metrics.ended(replace(story, predicted=made), 3.0)
    told = metrics.exposition(1, 1, 0).decode()
    name = "kvferry_predicted_first_token_ratio_sum"
    assert f'{name}{{path="disaggregated"}} 2.0' in told
