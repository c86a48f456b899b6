"""The prefix is cached on the prefill worker, decode is cold: what shipping a cached prompt costs.

Before every request the decode engine forgets its prefix cache; its own counter of hits shows
after it that it found nothing, and the prefill engine's that it found nearly all. Through the proxy
the same prompt is then asked again, now held by the decode engine: as fast as a hit can be.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bench.headline.amounts import Amounts
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.parts.miss import median_ttft, uncached_seconds
from bench.headline.turn import DISAGGREGATED, Sample, Turn
from bench.prompts import Prompt
from bench.statistics import median, round_ratios

HELD = 0.9
"""Fraction of the prompt the prefill engine has to find in its own cache."""

_HEARD_SECONDS = 0.5
"""Longer than an engine's news takes to the proxy."""


@dataclass(frozen=True)
class Hits:
    """Prompts held by the prefill engine alone, and each again, held by the decode engine.

    ``local`` is empty for systems whose second request would not be served by decode alone.
    """

    remote: list[Sample]
    local: list[Sample]


class Hit:
    """TTFT of prompts that were just computed, decode made cold each time."""

    name = "hit"
    systems = frozenset({"nixl", "kvferry"})
    every_round = True

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        return uncached_seconds(system, amounts) + 0.7 * amounts.hit_requests

    async def measure(self, turn: Turn) -> Hits:
        """See Part."""
        primed = await turn.uncached()
        hits = Hits([], [])
        for index in range(turn.amounts.hit_requests):
            prompt = primed[index % len(primed)].prompt
            await turn.system.forget()
            sample = await turn.sample(prompt, turn.amounts.output_tokens)
            _check(turn.system.name, sample)
            hits.remote.append(sample)
            if turn.system.name == "kvferry":
                hits.local.append(await _held_by_decode(turn, prompt))
        return hits

    def judge(self, figures: ByRound[Hits]) -> Judgement:
        """See Part."""
        medians = {
            system: {number: median_ttft(hits.remote) for number, hits in rounds.items()}
            for system, rounds in figures.items()
        }
        metrics = {
            f"{system}_hit_ttft_ms": median(list(rounds.values())) * 1000
            for system, rounds in medians.items()
            if rounds
        }
        detail: dict[str, object] = {
            "requests": {
                system: {number: [s.summary() for s in hits.remote] for number, hits in r.items()}
                for system, r in figures.items()
            }
        }
        ratios = round_ratios(medians.get("kvferry", {}), medians.get("nixl", {}))
        if ratios:
            metrics["hit_ttft_vs_nixl"] = median(list(ratios.values()))
            detail["hit_ttft_vs_nixl"] = ratios
        local = {
            number: median_ttft(hits.local)
            for number, hits in figures.get("kvferry", {}).items()
            if hits.local
        }
        if ratios := round_ratios(medians.get("kvferry", {}), local):
            metrics["local_hit_ttft_ms"] = median(list(local.values())) * 1000
            metrics["remote_hit_vs_local_hit"] = median(list(ratios.values()))
            detail["remote_hit_vs_local_hit"] = ratios
        return Judgement(metrics, detail, tuple(_detours(figures)))


async def _held_by_decode(turn: Turn, prompt: Prompt) -> Sample:
    """The prompt once more, once the proxy has heard that decode holds it."""
    await asyncio.sleep(_HEARD_SECONDS)
    sample = await turn.sample(prompt, turn.amounts.output_tokens)
    found = sample.counted["decode"].local_hits
    if found < HELD * prompt.tokens or sample.path == DISAGGREGATED:
        raise MeasureFailed(
            f"decode found only {found} of {prompt.tokens} tokens itself (path {sample.path!r})"
        )
    return sample


def _detours(figures: ByRound[Hits]) -> list[str]:
    """Requests that did not go through both workers: true figures, but not of a hit."""
    return [
        f"round {number}: hit on kvferry took the path {sample.path!r}"
        for number, hits in figures.get("kvferry", {}).items()
        for sample in hits.remote
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
