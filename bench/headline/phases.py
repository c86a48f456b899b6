"""Which systems run when: rounds in random order, and what each turn measures.

A phase is a stretch of rounds in one model data type. Figures are kept by part, system and round;
a part that fails in one turn leaves its reason there and the others go on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import RequestFailed
from bench.headline.amounts import Amounts
from bench.headline.part import MeasureFailed, Part
from bench.headline.turn import Turn
from bench.launchers.system import System
from bench.noise import NOISY_CORES, CpuWatch
from bench.processes import Child, StartFailed
from bench.prompts import PromptSource

AnyPart = Part[Any]
Say = Callable[[str], None]
Watch = Callable[[Sequence[Child]], CpuWatch]
Build = Callable[[str, str], System]
"""A system by its name and the model's dtype."""

START_SECONDS = 38.0
STOP_SECONDS = 6.0
"""What starting and stopping a pair takes on the machine the bounds were set on."""

WARM_UP_SECONDS = 3.0


@dataclass(frozen=True)
class TurnPlan:
    """One system's turn: in round ``number``, measuring ``parts`` in order."""

    number: int
    system: str
    parts: tuple[AnyPart, ...]

    def seconds(self, amounts: Amounts) -> float:
        """About how long it takes, start and stop included."""
        shared = {"miss", "hit", "handover"} & {part.name for part in self.parts}
        total = START_SECONDS + STOP_SECONDS + WARM_UP_SECONDS
        total += sum(part.seconds(self.system, amounts) for part in self.parts)
        if len(shared) > 1:  # their uncached requests are the same ones
            sharer = next(part for part in self.parts if part.name in {"miss", "handover"})
            total -= (len(shared) - 1) * sharer.seconds(self.system, amounts)
        return total


@dataclass(frozen=True)
class Phase:
    """Turns in one dtype, in the order they run."""

    dtype: str
    turns: tuple[TurnPlan, ...]


@dataclass
class Figures:
    """Everything measured: by part, system, round; and what went wrong."""

    taken: dict[str, dict[str, dict[int, Any]]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    turn_seconds: list[dict[str, object]] = field(default_factory=list)
    others_cores: dict[str, float] = field(default_factory=dict)

    def keep(self, part: str, system: str, number: int, figure: object) -> None:
        """Store one figure."""
        self.taken.setdefault(part, {}).setdefault(system, {})[number] = figure


def plan_rounds(
    dtype: str, parts: Sequence[AnyPart], systems: Sequence[str], rounds: int, order: random.Random
) -> Phase:
    """``rounds`` rounds over ``systems``, each once, in random order; once-only parts come last.

    A system that no part of a round needs has no turn in it.
    """
    turns = []
    for number in range(1, rounds + 1):
        shuffled = list(systems)
        order.shuffle(shuffled)
        for system in shuffled:
            wanted = tuple(
                part
                for part in parts
                if system in part.systems and (part.every_round or number == rounds)
            )
            if wanted:
                turns.append(TurnPlan(number, system, wanted))
    return Phase(dtype, tuple(turns))


class Runner:
    """Runs phases, one system up at a time."""

    def __init__(
        self,
        build: Build,
        prompts: PromptSource,
        seed: str,
        amounts: Amounts,
        say: Say,
        watch: Watch = CpuWatch,
    ) -> None:
        self._build = build
        self._prompts = prompts
        self._seed = seed
        self._amounts = amounts
        self._say = say
        self._watch = watch
        self.figures = Figures()

    async def run(self, phase: Phase) -> None:
        """All turns of ``phase``. A turn whose system does not start is recorded and skipped."""
        for plan in phase.turns:
            began = time.monotonic()
            self._say(f"round {plan.number}: {plan.system} ({phase.dtype}) starts")
            system = self._build(plan.system, phase.dtype)
            try:
                await system.start()
                up = time.monotonic() - began
                self._say(f"round {plan.number}: {plan.system} is up after {up:.0f} s")
                await self._turn(plan, system, phase.dtype)
            except (StartFailed, RequestFailed) as error:
                self._complain(f"round {plan.number}: {plan.system}: {error}")
            finally:
                await system.stop()
            taken = time.monotonic() - began
            self.figures.turn_seconds.append(
                {
                    "round": plan.number,
                    "system": plan.system,
                    "dtype": phase.dtype,
                    "seconds": round(taken, 1),
                }
            )

    async def _turn(self, plan: TurnPlan, system: System, dtype: str) -> None:
        turn = Turn(system, plan.number, f"{self._seed}/{dtype}", self._amounts, self._prompts)
        await turn.warm_up()
        for part in plan.parts:
            began, watch = time.monotonic(), self._watch(system.children())
            try:
                figure = await part.measure(turn)
            except (MeasureFailed, RequestFailed) as error:
                self._complain(f"round {plan.number}: {part.name} on {plan.system}: {error}")
                continue
            self.figures.keep(part.name, plan.system, plan.number, figure)
            taken, others = time.monotonic() - began, watch.others()
            where = f"round {plan.number}: {part.name} on {plan.system}"
            self.figures.others_cores[where] = round(others, 3)
            self._say(f"{where} took {taken:.0f} s")
            if others > NOISY_CORES:
                self._complain(f"{where}: others computed on {others:.2f} cores meanwhile")

    def _complain(self, complaint: str) -> None:
        self.figures.complaints.append(complaint)
        self._say(f"! {complaint}")
