"""A trace through every way of steering, one after the other, in worlds that are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.simulation.outcome import Outcome
from bench.simulation.policies import ConsistentHash, GreedyPrefix, LeastWork, RoundRobin, Rule
from bench.simulation.prompts import Prompt
from bench.simulation.ruled import Ruled
from bench.simulation.steered import Steered
from bench.simulation.world import Settings, World

OURS = "kvferry"
GUARD_PROMPTS = 5
"""The greedy rule tolerates a queue longer by so many prompts of the usual length."""

RULES = ("round-robin", "consistent-hash", "greedy-prefix", "least-work")
POLICIES = (OURS, *RULES)


@dataclass(frozen=True)
class Faults:
    """``lost``: the part of feed messages that never arrives; see ``Settings.restart_every``."""

    lost: float = 0.0
    restart_every: float | None = None

    def __bool__(self) -> bool:
        return self.lost > 0 or self.restart_every is not None


def replay(policy: str, prompts: Sequence[Prompt], settings: Settings, lost: float) -> Outcome:
    """The trace under ``policy``. ``lost`` concerns ours, which alone depends on a feed."""
    world = World(settings, prompts)
    steering = (
        Steered(world, lost) if policy == OURS else Ruled(world, _rule(policy, prompts, settings))
    )
    served = world.run(steering)
    return Outcome(served, settings.workers, world.restarts)


def _rule(policy: str, prompts: Sequence[Prompt], settings: Settings) -> Rule:
    curve = settings.curve
    usual = sum(curve.seconds(float(one.tokens), 0.0) for one in prompts) / len(prompts)
    rules: dict[str, Callable[[], Rule]] = {
        "round-robin": RoundRobin,
        "consistent-hash": lambda: ConsistentHash(settings.workers),
        "greedy-prefix": lambda: GreedyPrefix(GUARD_PROMPTS * usual),
        "least-work": lambda: LeastWork(curve),
    }
    return rules[policy]()
