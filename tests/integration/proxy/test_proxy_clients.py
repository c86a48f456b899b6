"""What a client must not be able to do, and what happens when it leaves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kvstore.salts import owner, tag
from tests.support.proxy_fakes import SALT_KEY, TOKEN, Stage, chat, completion, run, stage, until
from tests.support.steering import DROPPED, REFUSED, UNKNOWN

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_a_field_that_is_dropped_reaches_no_worker(tmp_path: Path, route: str) -> None:
    make = chat if route == "chat" else completion

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            for field, value in (DROPPED | UNKNOWN).items():
                s.d.seen.clear()
                s.p.seen.clear()
                for extra in ({}, {"n": 2}):  # with both legs, and decode alone
                    async with s.post(make(**{field: value}, **extra), route) as reply:
                        assert reply.status == 200, field
                        await reply.read()
                assert any(seen.path.endswith("/render") for seen in s.d.seen), field
                assert len(s.p.seen) == 1, field
                for seen in (*s.d.seen, *s.p.seen):
                    _check_ours(seen.body, s.d.tokens)
                    assert field not in seen.body
                    assert "chosen" not in json.dumps(seen.body), field

    run(scenario)


def _check_ours(body: dict[str, Any], tokens: list[int]) -> None:
    """Takes out what the proxy put in, which is no client's."""
    salted = body.pop("cache_salt", None)
    if salted is not None:
        whose = owner(salted)
        assert whose is not None
        assert whose.tag == tag(SALT_KEY, "alice")
    params = body.pop("kv_transfer_params", {})
    assert params.get("kvferry", {}).get("transfer") != "0" * 32
    assert params.get("prompt_token_ids") in (None, tokens)


@pytest.mark.parametrize(
    ("route", "field"), [(route, name) for route, names in REFUSED.items() for name in names]
)
def test_a_field_that_is_refused_reaches_no_worker(tmp_path: Path, route: str, field: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            make = chat if route == "chat" else completion
            for extra in ({}, {"n": 2}):
                body = make(**{field: REFUSED[route][field]}, **extra)
                async with s.post(body, route) as reply:
                    assert reply.status == 400
                    assert (await reply.json())["error"]["param"] == field
            assert not s.d.seen
            assert not s.p.seen

    run(scenario)


@pytest.mark.parametrize("key", ["image_url", "audio_url", "video_url"])
@pytest.mark.parametrize("url", ["http://169.254.169.254/", "FILE:///etc/passwd", " data:,"])
def test_what_lies_elsewhere_reaches_no_worker(tmp_path: Path, key: str, url: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            for given in (url, {"url": url}):
                parts = [{"type": "text", "text": "a"}, {"type": key, key: given}]
                body = chat(messages=[{"role": "user", "content": parts}])
                async with s.post(body) as reply:
                    assert reply.status == 400
                    error = (await reply.json())["error"]
                assert error["param"] == f"messages[0].content[1].{key}"
                assert url.strip() not in error["message"]
            assert not s.d.seen
            assert not s.p.seen

    run(scenario)


HEADERS = {
    "x-kvferry-owner": "0" * 16 + "-7",
    "x-kvferry-outcome": "{}",
    "x-kvferry-salt": "chosen",
    "x-tenant-id": "bob",
    "x-tenant": "bob",
    "x-gateway-inference-fairness-id": "bob",
    "x-prompt-cache-isolation-key": "chosen",
    "x-forwarded-for": "10.0.0.1",
    "forwarded": "for=10.0.0.1",
    "host": "chosen",
    "cookie": "chosen=1",
    "content-encoding": "chosen",
    "priority": "u=0",
    "metrics-format": "chosen",
    "endpoint-load-metrics-format": "TEXT",
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
                assert seen.headers.keys() <= WORKERS_SEE

    run(scenario)


def test_the_operators_token_is_not_handed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            # The client's own is one more header of that name: workers get the proxy's alone.
            headers = {"x-kvferry-token": TOKEN, "X-KVFERRY-TRANSFER": "0" * 32}
            async with s.post(chat(), headers=headers) as reply:
                assert "x-kvferry-plan" in reply.headers
                await reply.read()
            for seen in (*s.d.seen, *s.p.seen):
                assert seen.headers.keys() <= WORKERS_SEE
                assert seen.headers.get("x-kvferry-transfer") != "0" * 32

    run(scenario)


WORKERS_SEE = {
    "accept",
    "accept-encoding",
    "content-length",
    "content-type",
    "host",
    "user-agent",
    "x-kvferry-owner",
    "x-kvferry-token",
    "x-kvferry-transfer",
    "x-request-id",
}


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
