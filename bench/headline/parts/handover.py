"""From the end of the prefill leg to the first token: what the hand-over adds to computing.

Both moments are the proxy's own, told in a response header, because only the proxy sees the
prefill leg end. They count for requests that went through both workers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.headline.amounts import Amounts
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.parts.miss import uncached_seconds
from bench.headline.turn import DISAGGREGATED, Turn
from bench.statistics import median

TIMING_HEADER = "server-timing"

_FIGURE = re.compile(r"(\w+);dur=([0-9.]+)")


@dataclass(frozen=True)
class Handovers:
    """Milliseconds from prefill's end to the first token, and of the decode steps after it."""

    after_prefill_ms: list[float]
    step_ms: list[float]


class Handover:
    """Uses the uncached requests; a step is the gap between two tokens of a request alone."""

    name = "handover"
    systems = frozenset({"kvferry"})
    every_round = True

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        return uncached_seconds(system, amounts)

    async def measure(self, turn: Turn) -> Handovers:
        """See Part."""
        samples = await turn.uncached()
        if detours := [sample.path for sample in samples if sample.path != DISAGGREGATED]:
            raise MeasureFailed(f"{len(detours)} of {len(samples)} took the path {detours[0]!r}")
        headers = [sample.timeline.headers.get(TIMING_HEADER, "") for sample in samples]
        gaps = [gap * 1000 for sample in samples for gap in sample.timeline.gaps]
        return Handovers([after_prefill_ms(header) for header in headers], gaps)

    def judge(self, figures: ByRound[Handovers]) -> Judgement:
        """See Part."""
        rounds = figures.get("kvferry", {})
        after = [value for taken in rounds.values() for value in taken.after_prefill_ms]
        steps = [value for taken in rounds.values() for value in taken.step_ms]
        if not after or not steps:
            return Judgement({})
        metrics = {"first_token_after_prefill_ms": median(after), "decode_step_ms": median(steps)}
        return Judgement(metrics, {"after_prefill_ms": after})


def after_prefill_ms(header: str) -> float:
    """``first_token - prefill_ended`` of a Server-Timing header, ms; 0 where the first token came
    before the prefill leg's end was known. Raises MeasureFailed without the header.
    """
    figures = {name: float(value) for name, value in _FIGURE.findall(header)}
    if "first_token" not in figures:
        raise MeasureFailed(f"the proxy sent no {TIMING_HEADER} with the first token: {header!r}")
    return figures["first_token"] - figures.get("prefill_ended", figures["first_token"])
