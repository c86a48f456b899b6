"""The harness's loads on the benchmark's systems."""

from __future__ import annotations

import asyncio

import pytest

from bench.client import Body, Timeline
from bench.errors import RequestFailed
from bench.headline.load import loaded
from bench.headline.parts.mixed import Load
from bench.headline.parts.reuse import Reuse, Reused
from bench.load.workload import Workload
from tests.unit.bench.bench_doubles import FakeSystem, timeline

LOAD = Workload(
    rate=1000.0, requests=6, prompt="40", output="3", hit_ratio=0.5, prefixes=2,
    start="primed", warm_requests=0,
)  # fmt: skip


class Lanes(FakeSystem):
    """Keeps lanes and bodies; fails its ``n``-th request."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__("lanes")
        self.asked: list[tuple[int, Body]] = []
        self._fails = fails

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        self.asked.append((lane, body))
        return timeline(error="refused" if len(self.asked) == self._fails else "")


def test_prefixes_are_primed_and_lanes_taken_in_turn() -> None:
    system = Lanes()
    records = asyncio.run(loaded(system, LOAD, "salt"))
    primed = len(system.asked) - len(records)
    assert 1 <= primed <= 2
    assert all(body["max_tokens"] == 1 for _, body in system.asked[:primed])
    assert [lane for lane, _ in system.asked[primed:]] == list(range(6))
    starts = {body["prompt"][:60] for _, body in system.asked[:primed]}
    assert all(body["prompt"][:60] in starts for _, body in system.asked[primed:])


def test_a_system_that_cannot_be_primed_is_not_measured() -> None:
    with pytest.raises(RequestFailed, match="priming failed"):
        asyncio.run(loaded(Lanes(fails=1), LOAD, "salt"))


def test_reuse_divides_within_a_round() -> None:
    def reused(ttft: float) -> Reused:
        return Reused(Load([ttft], [0.02] * 1000, 0.0, {}), 0.3)

    metrics = (
        Reuse()
        .judge(
            {
                "plain": {1: reused(1.0), 2: reused(2.0)},
                "kvferry": {1: reused(0.5), 2: reused(0.5)},
            }
        )
        .metrics
    )
    assert metrics["reuse_ttft_p50_kvferry_vs_plain"] == pytest.approx(0.375)
    assert metrics["reuse_hit_ratio_plain"] == pytest.approx(0.3)
    assert "reuse_ttft_p50_nixl_vs_plain" not in metrics
