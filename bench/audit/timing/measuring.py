"""Makes trials and keeps the times to the first token, as the attacker's client sees them.

Trials come in blocks: all victims' prompts first, then a pause in which everybody hears of them,
then the probes, one at a time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.audit.asking import COMPLETIONS, Asker
from bench.audit.deployment import Deployment
from bench.audit.timing.trials import ARMS, EACH, Arm, Trial, Who, block

PAUSE_SECONDS = 1.0
_VICTIMS_AT_ONCE = 4
_MOST_FAILED = 0.05


@dataclass
class Times:
    """Seconds to the first token, by arm; how many requests failed, and the last ``error``."""

    of: dict[Arm, list[float]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    failed: int = 0
    error: str = ""
    asked: int = 0
    seconds: float = 0.0

    def arm(self, who: Who, *, hit: bool) -> list[float]:
        """One arm's."""
        return self.of[Arm(who, hit)]

    @property
    def broken(self) -> bool:
        """Too many requests failed to say anything."""
        return self.failed > _MOST_FAILED * max(1, self.asked)


class Measuring:
    """Asks ``deployment``; ``seed`` decides the order of trials."""

    def __init__(self, deployment: Deployment, asker: Asker, seed: int) -> None:
        self._deployment = deployment
        self._asker = asker
        self._order = random.Random(seed)
        self.times = Times()

    async def blocks(
        self,
        enough: Callable[[Times], bool],
        say: Callable[[str], None],
        each: Mapping[Who, int] = EACH,
    ) -> Times:
        """Blocks of trials until it is ``enough``; one at least."""
        began = time.monotonic()
        spent = self.times.seconds
        while True:
            await self._block(block(self._order, each))
            self.times.seconds = spent + time.monotonic() - began
            say(f"{self.times.asked} probes in {self.times.seconds:.0f} s")
            if self.times.broken or enough(self.times):
                return self.times

    async def _block(self, trials: list[Trial]) -> None:
        places = asyncio.Semaphore(_VICTIMS_AT_ONCE)

        async def ask(prompt: list[int]) -> None:
            async with places:
                timed = await self._asker.timed(
                    self._deployment.owner, COMPLETIONS, {"prompt": prompt}
                )
            self._note(timed.error)

        await asyncio.gather(*(ask(trial.victim) for trial in trials))
        await asyncio.sleep(PAUSE_SECONDS)
        for trial in trials:
            await self._probe(trial)

    async def _probe(self, trial: Trial) -> None:
        deployment = self._deployment
        tenant = deployment.stranger if trial.arm.who == "other" else deployment.owner
        timed = await self._asker.timed(tenant, COMPLETIONS, {"prompt": trial.probe})
        self.times.asked += 1
        self._note(timed.error)
        if not timed.error:
            self.times.of[trial.arm].append(timed.ttft)

    def _note(self, error: str) -> None:
        if error:
            self.times.failed += 1
            self.times.error = error
