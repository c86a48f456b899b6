"""The prefix is cached on the prefill worker, decode is cold: what shipping a cached prompt costs.

Before every request the decode engine forgets its prefix cache; its own counter of hits shows
after it that it found nothing, and the prefill engine's that it found nearly all.
"""

from __future__ import annotations

from bench.headline.amounts import Amounts
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.parts.miss import median_ttft, uncached_seconds
from bench.headline.turn import DISAGGREGATED, Sample, Turn
from bench.statistics import median, round_ratios

HELD = 0.9
"""Fraction of the prompt the prefill engine has to find in its own cache."""


class Hit:
    """TTFT of prompts that were just computed, decode made cold each time."""

    name = "hit"
    systems = frozenset({"nixl", "kvferry"})
    every_round = True

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        return uncached_seconds(system, amounts) + 0.7 * amounts.hit_requests

    async def measure(self, turn: Turn) -> list[Sample]:
        """See Part."""
        primed = await turn.uncached()
        samples = []
        for index in range(turn.amounts.hit_requests):
            prompt = primed[index % len(primed)].prompt
            await turn.system.forget()
            sample = await turn.sample(prompt, turn.amounts.output_tokens)
            _check(turn.system.name, sample)
            samples.append(sample)
        return samples

    def judge(self, figures: ByRound[list[Sample]]) -> Judgement:
        """See Part."""
        medians = {
            system: {number: median_ttft(samples) for number, samples in rounds.items()}
            for system, rounds in figures.items()
        }
        metrics = {
            f"{system}_hit_ttft_ms": median(list(rounds.values())) * 1000
            for system, rounds in medians.items()
            if rounds
        }
        detail: dict[str, object] = {
            "requests": {
                system: {number: [s.summary() for s in samples] for number, samples in r.items()}
                for system, r in figures.items()
            }
        }
        ratios = round_ratios(medians.get("kvferry", {}), medians.get("nixl", {}))
        if ratios:
            metrics["hit_ttft_vs_nixl"] = median(list(ratios.values()))
            detail["hit_ttft_vs_nixl"] = ratios
        return Judgement(metrics, detail, tuple(_detours(figures)))


def _detours(figures: ByRound[list[Sample]]) -> list[str]:
    """Requests that did not go through both workers: true figures, but not of a hit."""
    return [
        f"round {number}: hit on kvferry took the path {sample.path!r}"
        for number, samples in figures.get("kvferry", {}).items()
        for sample in samples
        if sample.path != DISAGGREGATED
    ]


def _check(system: str, sample: Sample) -> None:
    if not sample.decode_was_cold:
        found = sample.counted["decode"].local_hits
        raise MeasureFailed(f"{system}: decode was not cold, it found {found} tokens itself")
    held = sample.counted["prefill"].local_hits
    if held < HELD * sample.prompt.tokens:
        raise MeasureFailed(
            f"{system}: prefill found only {held} of {sample.prompt.tokens} tokens in its cache"
        )
