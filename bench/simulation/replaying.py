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
    """What makes steering harder. ``lost``: the part of feed messages that never arrives;
    ``proxies``: how many steer, each knowing of the others what they tell; see
    ``Settings.restart_every``.
    """

    lost: float = 0.0
    restart_every: float | None = None
    proxies: int = 1

    def __bool__(self) -> bool:
        return self.lost > 0 or self.restart_every is not None or self.proxies > 1


NO_FAULTS = Faults()


def replay(
    policy: str, prompts: Sequence[Prompt], settings: Settings, faults: Faults = NO_FAULTS
) -> Outcome:
    """The trace under ``policy``. ``faults`` concern ours alone, but for restarts."""
    world = World(settings, prompts)
    if policy == OURS:
        served = world.run(Steered(world, faults.lost, proxies=faults.proxies))
    else:
        served = world.run(Ruled(world, _rule(policy, prompts, settings)))
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
