"""The stub over the network: its delays, faults, queue and cache, as a client meets them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from bench import counters
from bench.client import Client, Endpoint, Timeline
from bench.errors import RequestFailed
from bench.stub import StubConfig, StubServer, serve
from bench.stub.requests import asked
from bench.stub.serving import factors

LATE = 1.0
"""Seconds by which a busy machine may be late; nothing may be early."""


@asynccontextmanager
async def stub(
    config: StubConfig, seconds: float = 20.0
) -> AsyncIterator[tuple[StubServer, Client, Endpoint]]:
    server = await serve(config)
    try:
        async with Client(seconds, trailer="kvferry_stub") as client:
            yield server, client, Endpoint(f"http://127.0.0.1:{server.port}")
    finally:
        await server.close()


def body(prompt: str = "one two three", tokens: int = 4) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": tokens}


async def one(config: StubConfig, **changes: object) -> Timeline:
    async with stub(config) as (_, client, endpoint):
        return await client.stream(endpoint, {**body(), **changes}, 0.0)


def test_delays_come_out_as_configured() -> None:
    timeline = asyncio.run(one(StubConfig(ttft_ms=60, itl_ms=30)))
    assert timeline.error == ""
    assert 0.059 <= timeline.tokens[0] - timeline.sent < 0.06 + LATE
    assert 0.089 - 0.06 <= timeline.tokens[-1] - timeline.tokens[0] < 0.09 + LATE
    told = timeline.trailer
    assert timeline.sent <= told["received"] <= told["first_token"] <= timeline.tokens[0]
    assert told["first_token"] - told["received"] >= 0.059
    assert told["last"] - told["first_token"] >= 0.089 - 0.002


def test_prefill_costs_by_uncached_word() -> None:
    async def go() -> list[Timeline]:
        config = StubConfig(prefill_us=1000, cache_blocks=100, block_words=10)
        async with stub(config) as (_, client, endpoint):
            prompt = " ".join(f"w{index}" for index in range(101))
            long = body(prompt, 1)
            timelines = [await client.stream(endpoint, long, 0.0) for _ in range(2)]
            page = counters.parse(await client.text(endpoint, "/metrics"))
            assert (page.local_queries, page.local_hits) == (202, 100)
            other = Endpoint(endpoint.base, {"authorization": "Bearer other"})
            timelines.append(await client.stream(other, long, 0.0))
            assert await client.post(endpoint, "/reset_prefix_cache") == {"success": True}
            timelines.append(await client.stream(endpoint, long, 0.0))
            return timelines

    cold, warm, foreign, forgotten = asyncio.run(go())
    assert [one.cached_tokens for one in (cold, warm, foreign, forgotten)] == [0, 100, 0, 0]
    assert cold.prompt_tokens == 101
    spent = [one.trailer["first_token"] - one.trailer["received"] for one in (cold, warm)]
    assert spent[0] >= 0.1
    assert 0.0005 <= spent[1] < 0.1


def test_slots_make_a_queue() -> None:
    async def go() -> list[Timeline]:
        async with stub(StubConfig(ttft_ms=40, slots=1)) as (_, client, endpoint):
            sent = [client.stream(endpoint, body(tokens=1), 0.0) for _ in range(3)]
            return await asyncio.gather(*sent)

    timelines = asyncio.run(go())
    firsts = sorted(one.trailer["first_token"] for one in timelines)
    assert [one.error for one in timelines] == ["", "", ""]
    assert firsts[1] - firsts[0] >= 0.038
    assert firsts[2] - firsts[1] >= 0.038


def test_those_who_leave_the_queue_or_their_slot_do_not_block_it() -> None:
    async def go() -> None:
        async with stub(StubConfig(ttft_ms=1e6, slots=1)) as (_, client, endpoint):

            async def until(running: int, waiting: int) -> None:
                told = f'running{{engine="0",model_name="stub"}} {running}.0'
                also = f'waiting{{engine="0",model_name="stub"}} {waiting}.0'
                page = ""
                while told not in page or also not in page:
                    await asyncio.sleep(0.01)
                    page = await client.text(endpoint, "/metrics")

            async with asyncio.timeout(10):
                sent = []
                for count in range(4):  # one after the other, to know who has the slot
                    sent.append(asyncio.create_task(client.stream(endpoint, body(), 0.0)))
                    await until(1, count)
                for left, running, waiting in ((2, 1, 2), (0, 1, 1), (1, 1, 0), (3, 0, 0)):
                    sent[left].cancel()
                    await until(running, waiting)

    asyncio.run(go())


def test_every_nth_is_refused_or_cut() -> None:
    async def go() -> list[Timeline]:
        async with stub(StubConfig(error_every=3, drop_every=2)) as (_, client, endpoint):
            return [await client.stream(endpoint, body(), 0.0) for _ in range(6)]

    timelines = asyncio.run(go())
    assert [bool(one.error) for one in timelines] == [False, True, True, True, False, True]
    assert timelines[2].status == 500
    assert "status 500" in timelines[2].error
    assert len(timelines[1].tokens) == 2
    assert "Cut" in timelines[1].error


def test_jitter_stretches_the_delays_by_its_factors() -> None:
    config = StubConfig(ttft_ms=20, jitter=1.0, seed=1)

    async def go() -> None:
        async with stub(config) as (_, client, endpoint):
            for index in range(5):
                request = body(f"prompt {index}", 1)
                told = (await client.stream(endpoint, request, 0.0)).trailer
                read = asked(msgspec.json.encode(request), False, "", 16)
                least = 0.02 * next(factors(config, read)) - 0.001
                assert least <= told["first_token"] - told["received"] < least + LATE

    asyncio.run(go())


@pytest.mark.parametrize("chat", [False, True])
def test_both_apis_stream_and_answer_whole(chat: bool) -> None:
    async def go() -> None:
        async with stub(StubConfig()) as (_, client, endpoint):
            path = "/v1/chat/completions" if chat else "/v1/completions"
            spoken = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 3}
            request = spoken if chat else body("a b", 3)
            timeline = await client.stream(endpoint, request, 0.0, path=path, keep_text=True)
            assert timeline.error == ""
            assert len(timeline.tokens) == 3
            assert timeline.text == " w0 w1 w2"
            assert timeline.completion_tokens == 3
            assert timeline.prompt_tokens == 2
            answer = await client.post(endpoint, path, request)
            choice = answer["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
            assert text == timeline.text
            assert answer["usage"] == timeline.usage
            assert set(answer["kvferry_stub"]) == set(timeline.trailer)

    asyncio.run(go())


def test_other_paths() -> None:
    async def go() -> None:
        async with stub(StubConfig(model="m")) as (_, client, endpoint):
            assert await client.get(endpoint, "/health") == {}
            models = await client.get(endpoint, "/v1/models")
            assert [one["id"] for one in models["data"]] == ["m"]
            with pytest.raises(RequestFailed, match="404"):
                await client.get(endpoint, "/nowhere")
            with pytest.raises(RequestFailed, match="400"):
                await client.post(endpoint, "/v1/completions", {})

    asyncio.run(go())


def test_nothing_stays_open_after_the_close() -> None:
    async def go() -> None:
        async with stub(StubConfig(ttft_ms=10_000)) as (server, client, endpoint):
            waiting = asyncio.create_task(client.stream(endpoint, body(), 0.0))
            while not server.connections:
                await asyncio.sleep(0.01)
            await server.close()
            assert "Cut" in (await waiting).error
            assert server.connections == 0

    asyncio.run(go())
