"""What the parts accept as a hit, a miss, a restored prompt; and how they judge rounds."""

import asyncio
from collections.abc import Mapping

import pytest

from bench.client import Body, Timeline
from bench.counters import CacheCounters
from bench.headline.amounts import varied
from bench.headline.part import MeasureFailed
from bench.headline.parts import hit
from bench.headline.parts.hit import Hit, Hits
from bench.headline.parts.miss import Miss
from bench.headline.parts.mixed import Load, Mixed
from bench.headline.parts.soak import Soak, Soaked
from bench.headline.turn import Sample, Turn
from bench.launchers.kvferry import locks
from bench.prompts import Prompt
from tests.unit.bench.bench_doubles import FakePrompts, FakeSystem, timeline

TOKENS = 2500
SMALL = varied(["uncached_requests=2", "hit_requests=4"])


class CachingSystem(FakeSystem):
    """Keeps what it was asked, on both sides; ``forgets`` decode's part unless it is broken."""

    def __init__(self, name: str, forgets: bool = True, keeps: bool = True) -> None:
        super().__init__(name)
        self._forgets, self._keeps = forgets, keeps
        self._held: dict[str, set[str]] = {"prefill": set(), "decode": set()}
        self._hits = {"prefill": 0, "decode": 0}

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        self.prompts.append(body["prompt"])
        for side, held in self._held.items():
            self._hits[side] += TOKENS if body["prompt"] in held else 0
            if self._keeps or side == "decode":
                held.add(body["prompt"])
        return timeline(prompt_tokens=TOKENS)

    async def forget(self) -> None:
        if self._forgets:
            self._held["decode"].clear()

    async def counters(self) -> Mapping[str, CacheCounters]:
        return {side: CacheCounters(0, hits, 0, 0, 0.0, 9, 32) for side, hits in self._hits.items()}


def hits(system: CachingSystem) -> Hits:
    return asyncio.run(Hit().measure(Turn(system, 1, "seed", SMALL, FakePrompts())))


def sample(ttft: float, cached: int = 0) -> Sample:
    told = timeline(tokens=(ttft, ttft + 0.1), cached_tokens=cached)
    return Sample(Prompt("", TOKENS), told, {"decode": CacheCounters(0, 0, 0, 0, 0.0, 9, 32)}, {})


def test_a_hit_is_a_primed_prompt_with_decode_cold():
    system = CachingSystem("nixl")
    samples = hits(system)
    assert (len(samples.remote), samples.local) == (4, [])
    assert system.prompts[2:] == system.prompts[:2] * 2
    assert all(each.decode_was_cold for each in samples.remote)


def test_each_hit_on_kvferry_is_asked_again_and_found_by_decode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hit, "_HEARD_SECONDS", 0.0)
    system = CachingSystem("kvferry")
    samples = hits(system)
    first, second = system.prompts[:2]
    assert system.prompts[2:] == [first, first, second, second] * 2
    assert [each.decode_was_cold for each in samples.local] == [False] * 4


def test_a_remote_hit_is_judged_by_a_local_one():
    found = {1: Hits([sample(0.3)], [sample(0.2)]), 2: Hits([sample(0.5)], [sample(0.2)])}
    assert Hit().judge({"kvferry": found}).metrics["remote_hit_vs_local_hit"] == 2.0


def test_a_decode_side_that_did_not_forget_gives_no_figure():
    with pytest.raises(MeasureFailed, match="decode was not cold"):
        hits(CachingSystem("nixl", forgets=False))


def test_a_prefill_side_that_does_not_hold_the_prompt_gives_no_figure():
    with pytest.raises(MeasureFailed, match="prefill found only 0"):
        hits(CachingSystem("nixl", keeps=False))


def test_miss_ratios_are_within_rounds_and_their_median_counts():
    figures = {
        "plain": {1: [sample(1.0)], 2: [sample(10.0)], 3: [sample(1.0)]},
        "kvferry": {1: [sample(1.1)], 2: [sample(10.0)], 3: [sample(1.3)]},
        "nixl": {1: [sample(2.0)], 3: [sample(1.8)]},
    }
    metrics = Miss().judge(figures).metrics
    assert metrics["miss_ttft_vs_plain"] == pytest.approx(1.1)
    assert metrics["nixl_miss_ttft_vs_plain"] == pytest.approx(1.9)


def test_a_miss_that_found_something_cached_is_complained_about():
    assert Miss().judge({"plain": {1: [sample(1.0, cached=32)]}}).complaints


def test_one_uncached_set_serves_all_parts_of_a_turn():
    async def both() -> tuple[list[Sample], list[Sample]]:
        turn = Turn(CachingSystem("kvferry"), 1, "seed", SMALL, FakePrompts())
        return await Miss().measure(turn), await turn.uncached()

    first, again = asyncio.run(both())
    assert first is again


def test_mixed_compares_tails_of_gaps_and_medians_of_first_tokens():
    calm, stalled = [0.02] * 1000, [0.02] * 900 + [0.4] * 100
    figures = {
        "plain": {1: Load([1.0, 2.0, 3.0], stalled, 0.0, {})},
        "kvferry": {1: Load([2.0, 3.0, 4.0], calm, 0.0, {})},
    }
    metrics = Mixed().judge(figures).metrics
    assert metrics["itl_p99_vs_aggregated"] == pytest.approx(0.05)
    assert metrics["ttft_p50_vs_aggregated"] == pytest.approx(1.5)


def test_soak_tells_errors_leaks_and_the_worst_growth():
    soaked = Soaked(10, ["broke off"], {}, {"decode": 2, "dram_locks": 1}, {"a": 0.01, "b": 0.03})
    metrics = Soak().judge({"kvferry": {3: soaked}}).metrics
    assert metrics == {"soak_errors": 1.0, "soak_leaked_blocks": 3.0, "soak_rss_growth": 0.03}


def test_locks_are_found_wherever_the_status_page_counts_them():
    page = {"l1": {"read_locked_count": 2, "more": [{"write_locked_count": 3}]}, "x": 9}
    assert locks(page) == 5
    assert locks({}) == 0
