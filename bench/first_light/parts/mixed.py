"""A mixed load: what prompts do to the tokens of others, and what that costs the first token."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bench.client import Timeline, at
from bench.first_light.part import ByRound, Judgement, MeasureFailed
from bench.first_light.turn import PATH_HEADER, Turn, request
from bench.first_light.workload import Workload
from bench.prompts import Prompt
from bench.statistics import median, percentile, round_ratios, supports_percentile


@dataclass(frozen=True)
class Load:
    """Seconds from intended send to first token, and between tokens, of one load."""

    ttfts: list[float]
    gaps: list[float]
    late: float
    paths: dict[str, int]


class Mixed:
    """Streaming requests at an even rate; the plain engines are dealt them in turns."""

    name = "mixed"
    systems = frozenset({"plain", "kvferry"})
    every_round = True

    def seconds(self, system: str, workload: Workload) -> float:
        """See Part."""
        return workload.mixed_requests / workload.mixed_rate + 4.0

    async def measure(self, turn: Turn) -> Load:
        """See Part."""
        prompts = self._prompts(turn)
        begin = time.monotonic() + 0.5
        timelines = await asyncio.gather(
            *(
                self._one(turn, prompt, begin + index / turn.workload.mixed_rate, index)
                for index, prompt in enumerate(prompts)
            )
        )
        if failures := [timeline.error for timeline in timelines if timeline.error]:
            raise MeasureFailed(f"{turn.system.name}: {len(failures)} failed: {failures[0]}")
        paths: dict[str, int] = {}
        for timeline in timelines:
            path = timeline.headers.get(PATH_HEADER, "")
            paths[path] = paths.get(path, 0) + 1
        return Load(
            [timeline.ttft for timeline in timelines],
            [gap for timeline in timelines for gap in timeline.gaps],
            max(timeline.sent - timeline.intended for timeline in timelines),
            paths,
        )

    def judge(self, figures: ByRound[Load]) -> Judgement:
        """See Part."""
        metrics: dict[str, float] = {}
        detail: dict[str, object] = {
            "loads": {
                system: {number: _summary(load) for number, load in rounds.items()}
                for system, rounds in figures.items()
            }
        }
        for metric, figure in (
            ("itl_p99_vs_aggregated", _itl_p99),
            ("ttft_p50_vs_aggregated", _ttft_p50),
        ):
            values = {
                system: {number: figure(load) for number, load in rounds.items()}
                for system, rounds in figures.items()
            }
            ratios = round_ratios(values.get("kvferry", {}), values.get("plain", {}))
            if ratios:
                metrics[metric] = median(list(ratios.values()))
                detail[metric] = ratios
        return Judgement(metrics, detail)

    def _prompts(self, turn: Turn) -> list[Prompt]:
        work, source = turn.workload, turn.source(self.name)
        lengths = [
            source.randint(work.mixed_shortest, work.mixed_longest)
            for _ in range(work.mixed_requests)
        ]
        return [turn.prompts.make(length, source) for length in lengths]

    async def _one(self, turn: Turn, prompt: Prompt, moment: float, lane: int) -> Timeline:
        body = request(prompt, turn.workload.mixed_output)
        return await turn.system.stream(body, await at(moment), lane)


def _itl_p99(load: Load) -> float:
    return percentile(load.gaps, 99)


def _ttft_p50(load: Load) -> float:
    return median(load.ttfts)


def _summary(load: Load) -> dict[str, object]:
    return {
        "ttft_ms": {f"p{rank}": round(1000 * percentile(load.ttfts, rank), 1) for rank in (50, 95)},
        "itl_ms": {
            f"p{rank}": round(1000 * percentile(load.gaps, rank), 1) for rank in (50, 99, 100)
        },
        "gaps": len(load.gaps),
        "enough_for_p99": supports_percentile(len(load.gaps), 99),
        "latest_send_ms": round(1000 * load.late, 2),
        "paths": load.paths,
    }
