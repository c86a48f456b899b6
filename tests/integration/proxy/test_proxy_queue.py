"""Requests wait in the proxy, not at a busy prefill worker; whoever leaves makes room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.proxy_fakes import Stage, chat, run, stage, until

pytestmark = pytest.mark.timeout(60)


async def busy(s: Stage) -> asyncio.Task[int]:
    """Its only prefill worker computes a long prompt, whose request this is, until it is let go."""
    s.p.hold = asyncio.Event()
    s.d.tokens = list(range(6000))
    first = asyncio.create_task(send(s))
    await until(lambda: len(s.p.seen) == 1)
    return first


async def waiting(s: Stage) -> asyncio.Task[int]:
    """Another request, once it waits."""
    second = asyncio.create_task(send(s))
    await until(lambda: s.pipeline.waiting == 1)
    return second


def let_go(s: Stage) -> None:
    assert s.p.hold is not None
    s.p.hold.set()


async def send(s: Stage, key: str = "alice") -> int:
    async with s.post(chat(), key=key) as reply:
        await reply.read()
        return int(reply.status)


def test_a_prompt_goes_to_the_worker_when_that_can_begin(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            first = await busy(s)
            second = await waiting(s)
            await s.counted("kvferry_requests_waiting 1.0")
            assert len(s.p.generated) == len(s.d.generated) == 1
            let_go(s)
            assert list(await asyncio.gather(first, second)) == [200, 200]
            assert len(s.p.generated) == 2

    run(scenario)


def test_who_leaves_while_waiting_is_sent_nowhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            first = await busy(s)
            second = await waiting(s)
            second.cancel()
            await until(lambda: s.pipeline.waiting == 0)
            let_go(s)
            assert await first == 200
            assert len(s.p.generated) == 1

    run(scenario)


def test_who_leaves_a_worker_makes_room_for_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            first = await busy(s)
            second = await waiting(s)
            first.cancel()
            await until(lambda: len(s.p.generated) == 2)
            let_go(s)
            assert await second == 200

    run(scenario)


def test_the_last_prefill_worker_goes_and_decode_serves_who_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            first = await busy(s)
            s.d.outcome = None
            second = asyncio.create_task(s.post(chat()).__aenter__())
            await until(lambda: s.pipeline.waiting == 1)
            s.p.state = "draining"
            s.pipeline.live("prefill")
            reply = await second
            assert reply.headers["x-kvferry-path"] == "decode-only"
            await s.counted('reason="no-prefill-worker"')
            let_go(s)
            await first

    run(scenario)


def test_a_tenants_queue_has_a_bound_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, tenant_waiting=1) as s:
            tasks = [await busy(s), await waiting(s)]
            async with s.post(chat()) as reply:
                assert reply.status == 503
                assert int(reply.headers["retry-after"]) >= 1
                assert "waiting" in (await reply.json())["error"]["message"]
            tasks.append(asyncio.create_task(send(s, "bob")))
            await until(lambda: s.pipeline.waiting == 2)
            let_go(s)
            assert list(await asyncio.gather(*tasks)) == [200, 200, 200]

    run(scenario)
