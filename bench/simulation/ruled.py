"""A rule as steering: every prompt is sent when it comes.

To the rule's favour it knows, without delay, what every engine holds and will hold when it has
done what it was given, and how long that takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.simulation.policies import Rule, Seen
from bench.simulation.prompts import Prompt
from bench.simulation.world import World


class Ruled:
    """See :class:`bench.simulation.world.Steering`."""

    def __init__(self, world: World, rule: Rule) -> None:
        self._world = world
        self._rule = rule
        self._coming: list[Counter[bytes]] = [Counter() for _ in world.engines]
        self._seconds: list[dict[int, float]] = [{} for _ in world.engines]
        self._since = [0.0] * len(world.engines)

    def arrived(self, prompt: Prompt) -> None:
        """See Steering."""
        seen = [self._seen(worker, prompt) for worker in range(len(self._world.engines))]
        chosen = self._rule.choose(prompt, seen)
        held = seen[chosen].held
        curve = self._world.settings.curve
        if not self._seconds[chosen]:
            self._since[chosen] = self._world.now
        self._seconds[chosen][prompt.number] = curve.seconds(
            float(prompt.tokens - held), float(held)
        )
        self._coming[chosen].update(prompt.whole)
        self._world.send(prompt, chosen)

    def forgot(self, worker: int, evicted: Sequence[bytes]) -> None:
        """See Steering."""

    def stored(self, worker: int, new: Sequence[bytes]) -> None:
        """See Steering."""

    def answered(self, worker: int, prompt: Prompt) -> None:
        """See Steering."""
        del self._seconds[worker][prompt.number]
        self._coming[worker].subtract(prompt.whole)
        self._coming[worker] += Counter()
        self._since[worker] = self._world.now

    def went(self, worker: int) -> None:
        """See Steering."""
        raise NotImplementedError("rules are simulated without faults")

    def failed(self, worker: int, prompt: Prompt) -> None:
        """See Steering."""
        raise NotImplementedError("rules are simulated without faults")

    def returned(self, worker: int) -> None:
        """See Steering."""
        raise NotImplementedError("rules are simulated without faults")

    def _seen(self, worker: int, prompt: Prompt) -> Seen:
        engine, coming = self._world.engines[worker], self._coming[worker]
        blocks = 0
        for name in prompt.whole:
            if name not in engine.cache and name not in coming:
                break
            blocks += 1
        given = self._seconds[worker]
        spent = self._world.now - self._since[worker]
        wait = sum(given.values()) - min(spent, next(iter(given.values()), 0.0))
        return Seen(wait, prompt.held(blocks))
