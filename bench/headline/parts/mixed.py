"""A mixed load: what prompts do to the tokens of others, and what that costs the first token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bench.headline.amounts import Amounts
from bench.headline.load import loaded
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.turn import Turn
from bench.load.workload import Workload
from bench.records import Record
from bench.statistics import median, percentile, round_ratios, supports_percentile


@dataclass(frozen=True)
class Load:
    """Seconds from intended send to first token, and between tokens, of one load."""

    ttfts: list[float]
    gaps: list[float]
    late: float
    paths: dict[str, int]

    @classmethod
    def of(cls, records: list[Record], system: str) -> Load:
        """What a load's records tell. Raises MeasureFailed where one request failed."""
        if failures := [record.error for record in records if record.error]:
            raise MeasureFailed(f"{system}: {len(failures)} failed: {failures[0]}")
        return cls(
            [record.ttft for record in records],
            [gap for record in records for gap in record.gaps],
            max(record.lag for record in records),
            dict(Counter(record.path for record in records)),
        )

    def summary(self) -> dict[str, object]:
        """What the result keeps of it."""
        return {
            "ttft_ms": {f"p{r}": round(1000 * percentile(self.ttfts, r), 1) for r in (50, 95)},
            "itl_ms": {f"p{r}": round(1000 * percentile(self.gaps, r), 1) for r in (50, 99, 100)},
            "gaps": len(self.gaps),
            "enough_for_p99": supports_percentile(len(self.gaps), 99),
            "latest_send_ms": round(1000 * self.late, 2),
            "paths": self.paths,
        }


class Mixed:
    """Streaming requests at an even rate; the plain engines are dealt them in turns."""

    name = "mixed"
    systems = frozenset({"plain", "kvferry"})
    every_round = True

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        return amounts.mixed_requests / amounts.mixed_rate + 4.0

    async def measure(self, turn: Turn) -> Load:
        """See Part."""
        amounts = turn.amounts
        workload = Workload(
            arrival="constant",
            rate=amounts.mixed_rate,
            requests=amounts.mixed_requests,
            prompt=f"{amounts.mixed_shortest}-{amounts.mixed_longest}",
            output=str(amounts.mixed_output),
            start="cold",
            seed=turn.number,
        )
        records = await loaded(turn.system, workload, turn.salt(self.name))
        return Load.of(records, turn.system.name)

    def judge(self, figures: ByRound[Load]) -> Judgement:
        """See Part."""
        metrics: dict[str, float] = {}
        detail: dict[str, object] = {
            "loads": {
                system: {number: load.summary() for number, load in rounds.items()}
                for system, rounds in figures.items()
            }
        }
        for metric, figure in (
            ("itl_p99_vs_aggregated", itl_p99),
            ("ttft_p50_vs_aggregated", ttft_p50),
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


def itl_p99(load: Load) -> float:
    """Seconds."""
    return percentile(load.gaps, 99)


def ttft_p50(load: Load) -> float:
    """Seconds."""
    return median(load.ttfts)
