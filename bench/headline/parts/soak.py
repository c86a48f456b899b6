"""Twenty clients for three minutes: no error, nothing leaked, no memory growing."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from bench import processes
from bench.headline.amounts import Amounts
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.turn import Turn, request
from bench.prompts import Prompt
from bench.records import PATH_HEADER
from bench.statistics import growth

SPAN_SECONDS = 120.0
WINDOW_SECONDS = 20.0
DRAIN_SECONDS = 60.0
"""How long after the last answer everything has to be free again: a lease and a deadline."""

_SAMPLE_SECONDS = 2.0
_SHARED_PROMPTS = 8


@runtime_checkable
class CountsLocks(Protocol):
    """A system whose DRAM tier tells how many objects it holds locked."""

    async def tier_locks(self) -> int:
        """Objects locked for reading or writing now."""


@dataclass
class Soaked:
    """What the clients met, and what was left when they had gone."""

    requests: int = 0
    errors: list[str] = field(default_factory=list)
    paths: dict[str, int] = field(default_factory=dict)
    leaked: dict[str, int] = field(default_factory=dict)
    growths: dict[str, float] = field(default_factory=dict)


class Soak:
    """Clients ask one request after another; half of the prompts have been asked before."""

    name = "soak"
    systems = frozenset({"kvferry"})
    every_round = False

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        return amounts.soak_seconds + 10.0

    async def measure(self, turn: Turn) -> Soaked:
        """See Part."""
        if not isinstance(turn.system, CountsLocks):
            raise MeasureFailed(f"{turn.system.name} does not tell its locks")
        soaked = Soaked()
        source = turn.source(self.name)
        shared = [self._prompt(turn, source) for _ in range(_SHARED_PROMPTS)]
        end = time.monotonic() + turn.amounts.soak_seconds
        watching = asyncio.create_task(_watch(turn, end))
        await asyncio.gather(
            *(
                self._client(turn, turn.source(f"{self.name}/{number}"), shared, end, soaked)
                for number in range(turn.amounts.soak_clients)
            )
        )
        soaked.growths = _growths(await watching, turn.amounts.soak_seconds)
        soaked.leaked = await _leaked(turn, turn.system)
        return soaked

    def judge(self, figures: ByRound[Soaked]) -> Judgement:
        """See Part."""
        rounds = list(figures.get("kvferry", {}).values())
        if not rounds:
            return Judgement({})
        metrics = {
            "soak_errors": float(sum(len(soaked.errors) for soaked in rounds)),
            "soak_leaked_blocks": float(sum(sum(soaked.leaked.values()) for soaked in rounds)),
        }
        growths = [value for soaked in rounds for value in soaked.growths.values()]
        if growths:
            metrics["soak_rss_growth"] = max(growths)
        return Judgement(metrics, {"rounds": [vars(soaked) for soaked in rounds]})

    def _prompt(self, turn: Turn, source: random.Random) -> Prompt:
        return turn.prompts.make(source.randint(40, turn.amounts.soak_longest), source)

    async def _client(
        self, turn: Turn, source: random.Random, shared: list[Prompt], end: float, soaked: Soaked
    ) -> None:
        while time.monotonic() < end:
            known = source.random() < 0.5
            prompt = source.choice(shared) if known else self._prompt(turn, source)
            body = request(prompt, source.randint(1, turn.amounts.soak_output))
            timeline = await turn.system.stream(body, time.monotonic())
            soaked.requests += 1
            path = timeline.headers.get(PATH_HEADER, "")
            soaked.paths[path] = soaked.paths.get(path, 0) + 1
            if not timeline.error and timeline.completion_tokens != body["max_tokens"]:
                soaked.errors.append(f"{timeline.completion_tokens} of {body['max_tokens']} tokens")
            elif timeline.error:
                soaked.errors.append(timeline.error)
                await asyncio.sleep(0.2)  # a server that refuses is not to be hammered


async def _watch(turn: Turn, end: float) -> dict[str, list[tuple[float, float]]]:
    """Resident bytes of every process, every few seconds until ``end``."""
    levels: dict[str, list[tuple[float, float]]] = {}
    while (now := time.monotonic()) < end:
        for name, resident in processes.resident(turn.system.children()).items():
            levels.setdefault(name, []).append((now, float(resident)))
        await asyncio.sleep(_SAMPLE_SECONDS)
    return levels


def _growths(levels: dict[str, list[tuple[float, float]]], seconds: float) -> dict[str, float]:
    """Growth of every process that lived through the whole span."""
    span = min(SPAN_SECONDS, seconds * SPAN_SECONDS / 180.0)
    window = min(WINDOW_SECONDS, span / 4)
    last = max((samples[-1][0] for samples in levels.values()), default=0.0)
    return {
        name: round(growth(samples, span, window), 5)
        for name, samples in levels.items()
        if samples[0][0] <= last - span + window and samples[-1][0] >= last - window
    }


async def _leaked(turn: Turn, locks: CountsLocks) -> dict[str, int]:
    """Blocks in use by each engine and locks of the tier, once all is free or time is up."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        counters = await turn.system.counters()
        left = {name: round(count.usage * count.blocks) for name, count in counters.items()}
        left["dram_locks"] = await locks.tier_locks()
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(1.0)
