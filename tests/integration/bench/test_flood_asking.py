"""The flood benchmark's requests against a server whose cache is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bench.client import Client, Endpoint
from bench.flooding.asking import Asking, Found
from bench.flooding.load import NOISY, QUIET, Sizes, Wanted, settling, slice_of
from bench.flooding.settings import Amounts, FloodFailed
from bench.stub import StubConfig, serve

AMOUNTS = Amounts(seconds=0.6, lead=0.2, document=64, question=8, output=2)
MANY = Sizes(quiet=4, inside=4, flood=40, everything=10)
ROOMY = StubConfig(cache_blocks=1000, block_words=16)


def asked(config: StubConfig, *parts: Sequence[Wanted], seconds: float = 20.0) -> list[list[Found]]:
    """What came of the first part, one by one, and of the others as slices."""

    async def go() -> list[list[Found]]:
        server = await serve(config)
        try:
            async with Client(20.0) as client:
                at = Endpoint(f"http://127.0.0.1:{server.port}")
                asking = Asking(client, {QUIET: at, NOISY: at}, "salt", AMOUNTS.output)
                found = [await asking.one_by_one(parts[0])]
                return found + [await asking.slice(part, seconds) for part in parts[1:]]
        finally:
            await server.close()

    return asyncio.run(go())


def test_what_was_asked_before_is_found_and_the_lead_does_not_count() -> None:
    wanted = slice_of(AMOUNTS, MANY, "inside", 0, rate=30.0)
    before, found = asked(ROOMY, settling(AMOUNTS, MANY, "inside", 0), wanted)
    assert [one.cached for one in before] == [0] * 8
    assert len(found) == sum(one.counted for one in wanted) < len(wanted)
    assert [one.tenant for one in found] == [one.tenant for one in wanted if one.counted]
    assert {one.cached for one in found} == {AMOUNTS.document}
    assert all(one.prompt == AMOUNTS.document + AMOUNTS.question for one in found)
    assert all(0 <= one.late < one.ttft < 2 for one in found)


def test_a_request_that_fails_ends_the_run() -> None:
    wanted = slice_of(AMOUNTS, MANY, "inside", 0, rate=30.0)
    with pytest.raises(FloodFailed, match=r"a request of (quiet|noisy) failed"):
        asked(StubConfig(error_every=5), [], wanted)


def test_who_does_not_answer_in_time_ends_the_run() -> None:
    wanted = slice_of(AMOUNTS, MANY, "inside", 0, rate=30.0)
    with pytest.raises(FloodFailed, match="not all was answered"):
        asked(StubConfig(ttft_ms=5000), [], wanted, seconds=1.0)
