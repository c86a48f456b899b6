"""One system's turn in one round: it is up, and the parts take their figures off it.

What several parts need is measured once and shared: the uncached requests are at the same time
the miss figures, the prompts that a hit finds on the prefill side, and the hand-over's requests.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench import processes
from bench.client import Timeline
from bench.counters import CacheCounters
from bench.errors import RequestFailed
from bench.headline.amounts import Amounts
from bench.launchers.system import MODEL_NAME, System
from bench.prompts import Prompt, PromptSource
from bench.records import PATH_HEADER
from bench.statistics import median

DISAGGREGATED = "disaggregated"
"""What the header says when both workers took part."""


@dataclass(frozen=True)
class Sample:
    """One request alone on the system, with what every engine counted meanwhile.

    ``cores``: how many cores each process of the system kept busy on average, where it shows.
    """

    prompt: Prompt
    timeline: Timeline
    counted: Mapping[str, CacheCounters]
    cores: Mapping[str, float]

    @property
    def decode_was_cold(self) -> bool:
        """Whether the engine that decodes found none of the prompt in its own cache."""
        return self.counted["decode"].local_hits == 0

    @property
    def path(self) -> str:
        """The path the proxy says the request took; empty where there is no proxy."""
        return self.timeline.headers.get(PATH_HEADER, "")

    def summary(self) -> dict[str, object]:
        """What the result keeps of it."""
        counts = {
            name: {"local_hits": count.local_hits, "external_hits": count.external_hits}
            for name, count in self.counted.items()
        }
        return {
            "prompt_tokens": self.prompt.tokens,
            "ttft_ms": round(self.timeline.ttft * 1000, 3),
            "itl_ms": round(median(self.timeline.gaps) * 1000, 3) if self.timeline.gaps else None,
            "cached_tokens": self.timeline.cached_tokens,
            "path": self.path,
            "tier_counters": counts,
            "cores": self.cores,
        }


class Turn:
    """A running system within round ``number``. Prompts depend on seed and round alone, so every
    system of a round is asked the same; ``part`` keeps the parts' prompts apart."""

    def __init__(
        self, system: System, number: int, seed: str, amounts: Amounts, prompts: PromptSource
    ) -> None:
        self.system = system
        self.number = number
        self.amounts = amounts
        self.prompts = prompts
        self._seed = seed
        self._uncached: list[Sample] = []

    def source(self, part: str) -> random.Random:
        """Randomness of ``part`` in this round."""
        return random.Random(self.salt(part))

    def salt(self, part: str) -> str:
        """What keeps the texts of ``part`` in this round apart from all others."""
        return f"{self._seed}/{self.number}/{part}"

    async def warm_up(self) -> None:
        """Requests nobody measures: first ones pay for connections, handshakes and first touches.

        Raises RequestFailed.
        """
        source = self.source("warm-up")
        for lane in (0, 1):
            prompt = self.prompts.make(self.amounts.warmup_tokens, source)
            await self.stream(prompt, self.amounts.output_tokens, lane)

    async def uncached(self) -> list[Sample]:
        """Requests nobody has seen the like of, one after the other. Raises RequestFailed."""
        if not self._uncached:
            source = self.source("uncached")
            for _ in range(self.amounts.uncached_requests):
                prompt = self.prompts.make(self.amounts.prompt_tokens, source)
                self._uncached.append(await self.sample(prompt, self.amounts.output_tokens))
        return self._uncached

    async def sample(self, prompt: Prompt, output_tokens: int) -> Sample:
        """One request, watched by the tier counters. Raises RequestFailed."""
        before = await self.system.counters()
        computed, began = processes.computed(self.system.children()), time.monotonic()
        timeline = await self.stream(prompt, output_tokens)
        cores = _cores(
            computed, processes.computed(self.system.children()), time.monotonic() - began
        )
        after = await self.system.counters()
        counted = {name: count.since(before[name]) for name, count in after.items()}
        return Sample(prompt, timeline, counted, cores)

    async def stream(self, prompt: Prompt, output_tokens: int, lane: int = 0) -> Timeline:
        """One request sent now. Raises RequestFailed unless it is answered in full."""
        body = request(prompt, output_tokens)
        timeline = await self.system.stream(body, time.monotonic(), lane)
        if timeline.error:
            raise RequestFailed(f"{self.system.name}: {timeline.error}")
        if timeline.prompt_tokens != prompt.tokens:
            raise RequestFailed(
                f"{self.system.name} counts {timeline.prompt_tokens} tokens in a prompt of "
                f"{prompt.tokens}"
            )
        return timeline


def _cores(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    shares = {name: (spent - before.get(name, 0.0)) / seconds for name, spent in after.items()}
    return {name: round(share, 2) for name, share in shares.items() if share >= 0.02}


def request(prompt: Prompt, output_tokens: int) -> dict[str, object]:
    """A greedy completion of exactly ``output_tokens`` tokens."""
    return {
        "model": MODEL_NAME,
        "prompt": prompt.text,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
