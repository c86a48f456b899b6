"""What a client must not be able to do, and what happens when it leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvstore.salts import Scope, salt
from proxy.requests import DROPPED
from tests.support.proxy_fakes import SALT_KEY, Stage, chat, completion, run, stage, until

pytestmark = pytest.mark.timeout(60)

STEERING = {
    "cache_salt": "somebody-elses",
    "ec_transfer_params": {"x": 1},
    "kv_transfer_params": {"kvferry": {"transfer": "0" * 32}, "prompt_token_ids": [1]},
    "priority": -100,
    "prompt_cache_key": "ours",
    "request_id": "chosen",
    "session_id": "chosen",
    "vllm_xargs": {"kv_transfer_params": 1},
}


def test_every_dropped_field_is_tested() -> None:
    assert set(STEERING) == DROPPED


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("field", STEERING)
def test_steering_field_is_dropped(tmp_path: Path, field: str, route: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            make = chat if route == "chat" else completion
            for extra in ({}, {"n": 2}):  # with both legs, and decode alone
                async with s.post(make(**{field: STEERING[field]}, **extra), route) as reply:
                    assert reply.status == 200
                    await reply.read()
            for seen in (*s.d.seen, *s.p.seen):
                ours = seen.body.pop("cache_salt", None)
                assert ours in (None, salt(SALT_KEY, Scope("alice", 0)))
                params = seen.body.pop("kv_transfer_params", {})
                assert params.get("kvferry", {}).get("transfer") != "0" * 32
                assert params.get("prompt_token_ids") in (None, s.d.tokens)
                assert field not in seen.body

    run(scenario)


HEADERS = {
    "x-request-id": "chosen",
    "x-kvferry-transfer": "0" * 32,
    "x-kvferry-token": "guess",
    "x-data-parallel-rank": "3",
    "x-session-affinity": "chosen",
    "x-session-id": "chosen",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


@pytest.mark.parametrize("header", HEADERS)
def test_steering_header_is_dropped(tmp_path: Path, header: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            async with s.post(chat(), headers={header: HEADERS[header]}) as reply:
                assert reply.headers["x-request-id"] != "chosen"
                await reply.read()
            for seen in (*s.d.seen, *s.p.seen):
                assert seen.headers.get(header) != HEADERS[header]
                assert "authorization" not in seen.headers

    run(scenario)


async def _left(s: Stage, task: asyncio.Task[Any], *legs: asyncio.Event) -> None:
    """The client of ``task`` leaves; within a second both ``legs`` are aborted."""
    task.cancel()
    async with asyncio.timeout(1):
        for leg in legs:
            await leg.wait()
    await until(lambda: not s.pipeline.loads.counts, 1)
    await s.counted('status="499"')


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token_aborts_both_legs(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.p.hold, s.d.hold = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(s.post(chat(stream=stream)).__aenter__())
            await s.p.arrived.wait()
            await s.d.arrived.wait()
            await _left(s, task, s.p.aborted, s.d.aborted)

    run(scenario)


def test_leaving_amid_a_stream_aborts_decode(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.hold_after = 2
            begun = asyncio.Event()

            async def read() -> None:
                async with s.post(chat(stream=True)) as reply:
                    await reply.content.readuntil(b"\n\n")
                    begun.set()
                    await reply.read()

            task = asyncio.create_task(read())
            await begun.wait()
            await _left(s, task, s.d.aborted)

    run(scenario)


def test_leaving_while_a_worker_renders(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.hold_render = asyncio.Event()
            task = asyncio.create_task(s.post(chat()).__aenter__())
            await until(lambda: bool(s.d.seen))
            task.cancel()
            await s.counted("kvferry_requests_in_flight 0.0")

    run(scenario)


def test_a_slow_reader_does_not_stop_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            s.d.texts = ["x" * 50_000] * 200
            async with (
                s.post(completion(stream=True), "completions"),
                asyncio.timeout(5),
                s.post(chat()) as other,
            ):
                assert other.status == 200
                await other.read()

    run(scenario)
