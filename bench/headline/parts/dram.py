"""The prefill worker was killed and is back: the prompt now comes from the DRAM tier."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bench.headline.amounts import Amounts
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.parts.miss import median_ttft, uncached_seconds
from bench.headline.turn import DISAGGREGATED, Sample, Turn
from bench.records import PATH_HEADER
from bench.statistics import median, round_ratios

RESTART_SECONDS = 240.0
_STORED_SECONDS = 2.0
"""Blocks are stored behind the request's back; this long after it they are."""

_PROBE_TOKENS = 96


@runtime_checkable
class Restarts(Protocol):
    """A system whose prefill worker can be killed and comes back by itself."""

    async def kill_prefill(self) -> list[str]:
        """SIGKILL the prefill worker's processes; returns their titles."""


@dataclass(frozen=True)
class Restarted:
    """Requests before the kill (uncached) and, of the same prompts, after the restart."""

    uncached: list[Sample]
    restored: list[Sample]
    killed: list[str]
    restart_seconds: float


class Dram:
    """Its own prompts, so that nothing else has pushed them out of the tier."""

    name = "dram"
    systems = frozenset({"kvferry"})
    every_round = True

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        each = uncached_seconds(system, amounts) / amounts.uncached_requests
        return amounts.dram_prompts * (each + 1.0) + 45.0

    async def measure(self, turn: Turn) -> Restarted:
        """See Part."""
        system = turn.system
        if not isinstance(system, Restarts):
            raise MeasureFailed(f"{system.name} has no prefill worker to kill")
        source = turn.source(self.name)
        primed = [
            await turn.sample(
                turn.prompts.make(turn.amounts.prompt_tokens, source), turn.amounts.output_tokens
            )
            for _ in range(turn.amounts.dram_prompts)
        ]
        await asyncio.sleep(_STORED_SECONDS)
        began = time.monotonic()
        killed = await system.kill_prefill()
        await _until_back(turn)
        seconds = time.monotonic() - began
        restored = [await _restored(turn, sample) for sample in primed]
        return Restarted(primed, restored, killed, seconds)

    def judge(self, figures: ByRound[Restarted]) -> Judgement:
        """See Part."""
        rounds = figures.get("kvferry", {})
        if not rounds:
            return Judgement({})
        ratios = round_ratios(
            {number: median_ttft(taken.restored) for number, taken in rounds.items()},
            {number: median_ttft(taken.uncached) for number, taken in rounds.items()},
        )
        fractions = [
            sample.timeline.cached_tokens / sample.prompt.tokens
            for taken in rounds.values()
            for sample in taken.restored
        ]
        detail = {
            "dram_ttft_vs_miss": ratios,
            "rounds": {
                number: {
                    "killed": taken.killed,
                    "restart_seconds": round(taken.restart_seconds, 1),
                    "uncached": [sample.summary() for sample in taken.uncached],
                    "restored": [sample.summary() for sample in taken.restored],
                }
                for number, taken in rounds.items()
            },
        }
        metrics = {
            "dram_ttft_vs_miss": median(list(ratios.values())),
            # The least of all requests: a median would hide one that was recomputed.
            "dram_cached_fraction": min(fractions),
        }
        return Judgement(metrics, detail)


async def _restored(turn: Turn, primed: Sample) -> Sample:
    await turn.system.forget()
    sample = await turn.sample(primed.prompt, turn.amounts.output_tokens)
    if not sample.decode_was_cold:
        raise MeasureFailed("decode was not cold")
    if found := sample.counted["prefill"].local_hits:
        raise MeasureFailed(f"prefill found {found} tokens in its own cache after a restart")
    return sample


async def _until_back(turn: Turn) -> None:
    """Ask short prompts until one goes through both workers again."""
    source = turn.source("probe")
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        timeline = await turn.stream(turn.prompts.make(_PROBE_TOKENS, source), 2)
        if timeline.headers.get(PATH_HEADER) == DISAGGREGATED:
            return
        await asyncio.sleep(0.5)
    raise MeasureFailed(f"the prefill worker was not back after {RESTART_SECONDS:.0f} s")
