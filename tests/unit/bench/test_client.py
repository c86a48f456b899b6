"""The client against a server in this process."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from bench.client import Client, Endpoint, Timeline
from bench.errors import RequestFailed

TOKEN = 'data: {"choices":[{"text":"%s"}]}\n\n'
USAGE = (
    'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,'
    '"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = "data: [DONE]\n\n"


async def answered(stream: str, status: int) -> tuple[Timeline, dict[str, Any]]:
    """The timeline of a request that a server answers with ``stream``."""
    asked: dict[str, Any] = {}

    async def completions(request: web.Request) -> web.Response:
        asked.update(await request.json())
        return web.Response(text=stream, status=status, headers={"X-Path": "somewhere"})

    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with Client(10) as client:
            endpoint = Endpoint(f"http://{host}:{port}")
            return await client.stream(endpoint, {"prompt": "x"}, intended=0.0), asked
    finally:
        await runner.cleanup()


def run(stream: str, status: int = 200) -> tuple[Timeline, dict[str, Any]]:
    return asyncio.run(answered(stream, status))


def test_a_whole_stream_is_timed_token_by_token() -> None:
    # The second token is text-less (a half character, a special token): it counts all the same.
    timeline, asked = run(TOKEN % "a" + TOKEN % "" + USAGE + DONE)
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert timeline.error == ""
    assert len(timeline.tokens) == 2
    assert len(timeline.gaps) == 1
    assert (timeline.prompt_tokens, timeline.completion_tokens) == (7, 2)
    assert timeline.cached_tokens == 4
    assert timeline.headers["x-path"] == "somewhere"


def test_latency_counts_from_the_intended_moment() -> None:
    timeline, _ = run(TOKEN % "a" + DONE)
    assert timeline.ttft == timeline.tokens[0] - 0.0
    assert timeline.sent > timeline.intended


@pytest.mark.parametrize(
    ("stream", "status", "error"),
    [
        (TOKEN % "a", 200, "broke off"),
        (DONE, 200, "no token"),
        ('data: {"error":{"message":"out of luck"}}\n\n' + DONE, 200, "out of luck"),
        ('{"error":"busy"}', 503, "status 503"),
    ],
)
def test_a_stream_that_did_not_end_well_says_so(stream: str, status: int, error: str) -> None:
    timeline, _ = run(stream, status)
    assert error in timeline.error


def test_nobody_listening_is_an_error_not_an_exception() -> None:
    async def ask() -> Timeline:
        async with Client(5) as client:
            endpoint = Endpoint("http://127.0.0.1:1")
            timeline = await client.stream(endpoint, {}, 0.0)
            with pytest.raises(RequestFailed):
                await client.post(endpoint, "/reset_prefix_cache")
            return timeline

    assert "Connect" in asyncio.run(ask()).error
