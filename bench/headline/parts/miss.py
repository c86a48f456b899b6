"""Nothing cached anywhere: what disaggregation costs a prompt that nobody has seen."""

from __future__ import annotations

from bench.headline.amounts import Amounts
from bench.headline.part import ByRound, Judgement
from bench.headline.turn import Sample, Turn
from bench.statistics import median, round_ratios

_PREFILL_RATE = 1000.0
"""Tokens per second of one engine on the machine the bounds were set on."""

_COST = {"plain": 1.0, "nixl": 2.0, "kvferry": 1.15}


def uncached_seconds(system: str, amounts: Amounts) -> float:
    """How long the uncached requests of a turn take."""
    each = _COST[system] * amounts.prompt_tokens / _PREFILL_RATE + 0.022 * amounts.output_tokens
    return amounts.uncached_requests * each


def median_ttft(samples: list[Sample]) -> float:
    """Median TTFT, seconds."""
    return median([sample.timeline.ttft for sample in samples])


class Miss:
    """TTFT of uncached prompts, each alone on the system."""

    name = "miss"
    systems = frozenset({"plain", "nixl", "kvferry"})
    every_round = True

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        return uncached_seconds(system, amounts)

    async def measure(self, turn: Turn) -> list[Sample]:
        """See Part."""
        return await turn.uncached()

    def judge(self, figures: ByRound[list[Sample]]) -> Judgement:
        """See Part."""
        medians = {
            system: {number: median_ttft(samples) for number, samples in rounds.items()}
            for system, rounds in figures.items()
        }
        metrics: dict[str, float] = {}
        detail: dict[str, object] = {
            "requests": {
                system: {number: [s.summary() for s in samples] for number, samples in r.items()}
                for system, r in figures.items()
            }
        }
        for system, rounds in medians.items():
            if rounds:
                metrics[f"{system}_miss_ttft_ms"] = median(list(rounds.values())) * 1000
        for system, metric in (
            ("kvferry", "miss_ttft_vs_plain"),
            ("nixl", "nixl_miss_ttft_vs_plain"),
        ):
            ratios = round_ratios(medians.get(system, {}), medians.get("plain", {}))
            if ratios:
                metrics[metric] = median(list(ratios.values()))
                detail[metric] = ratios
        return Judgement(metrics, detail, tuple(_complaints(figures)))


def _complaints(figures: ByRound[list[Sample]]) -> list[str]:
    found = []
    for system, rounds in figures.items():
        for number, samples in rounds.items():
            if any(sample.timeline.cached_tokens for sample in samples):
                found.append(f"round {number}: {system} had cached tokens for a new prompt")
    return found
