"""The same load on every system: prompts of which a part, here 30 %, has been asked before.

Caches begin primed with the shared prefixes, so what differs is where each system finds them
again, what it costs to get them to where they are needed, and what prompts do to decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.headline.amounts import Amounts
from bench.headline.load import loaded
from bench.headline.part import ByRound, Judgement
from bench.headline.parts.mixed import Load, itl_p99, ttft_p50
from bench.headline.turn import Turn
from bench.load.workload import Workload
from bench.statistics import median, round_ratios

PREFIXES = 3


@dataclass(frozen=True)
class Reused:
    """A load, and the fraction of its prompt tokens that the system said were cached."""

    load: Load
    hit_ratio: float


class Reuse:
    """Poisson arrivals; figures of each system over the plain engines' of the same round."""

    name = "reuse"
    systems = frozenset({"plain", "nixl", "lmcache", "kvferry"})
    every_round = True

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        return amounts.reuse_requests / amounts.reuse_rate + 10.0

    async def measure(self, turn: Turn) -> Reused:
        """See Part."""
        amounts = turn.amounts
        workload = Workload(
            rate=amounts.reuse_rate,
            requests=amounts.reuse_requests,
            prompt=str(amounts.reuse_prompt),
            output=str(amounts.reuse_output),
            hit_ratio=amounts.reuse_fraction,
            prefixes=PREFIXES,
            start="primed",
            warm_requests=0,
            seed=turn.number,
        )
        records = await loaded(turn.system, workload, turn.salt(self.name))
        load = Load.of(records, turn.system.name)
        cached = sum(record.cached_tokens or 0 for record in records)
        return Reused(load, cached / sum(record.prompt_tokens or 0 for record in records))

    def judge(self, figures: ByRound[Reused]) -> Judgement:
        """See Part."""
        metrics: dict[str, float] = {}
        detail: dict[str, object] = {}
        plain = figures.get("plain", {})
        for system, rounds in figures.items():
            metrics[f"reuse_hit_ratio_{system}"] = median(
                [one.hit_ratio for one in rounds.values()]
            )
            detail[system] = {
                number: {
                    **one.load.summary(),
                    "hit_ratio": round(one.hit_ratio, 4),
                    "ttfts_ms": [round(1000 * ttft, 1) for ttft in one.load.ttfts],
                }
                for number, one in rounds.items()
            }
            if system == "plain":
                continue
            for name, figure in (("ttft_p50", ttft_p50), ("itl_p99", itl_p99)):
                ratios = round_ratios(
                    {number: figure(one.load) for number, one in rounds.items()},
                    {number: figure(one.load) for number, one in plain.items()},
                )
                if ratios:
                    metrics[f"reuse_{name}_{system}_vs_plain"] = median(list(ratios.values()))
                    detail[f"{name}_{system}_vs_plain"] = ratios
        return Judgement(metrics, detail)
