"""What stub workers computed and what they really held of it; beside it, what blind steering finds.

Pure, but for the dice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from bench.routing.holdings import Holding

TALLY = "/tally"
"""Where every stub worker tells the tally of all."""


class Counts(msgspec.Struct, frozen=True):
    """So far, at ``at`` (monotonic seconds, the same for all processes of a machine).

    Of ``prompts`` their ``tokens``, those that were ``cached`` where they were computed, and those
    that would have been had the prefill workers been chosen ``blind``. ``replays``: when a proxy,
    by name, was first sent a snapshot of what a worker holds.
    """

    at: float
    prompts: int
    tokens: int
    cached: int
    blind: int
    replays: dict[str, float]


@dataclass
class Tally:
    """Of one fleet. The same prompts are dealt to ``shadows`` at random: as many as there are
    prefill workers, with as much room each.
    """

    shadows: Sequence[Holding]
    dice: random.Random
    prompts: int = 0
    tokens: int = 0
    cached: int = 0
    blind: int = 0
    replays: dict[str, float] = field(default_factory=dict)

    def computed(self, names: Sequence[bytes], tokens: int, cached: int, block_size: int) -> None:
        """A worker had ``cached`` of a prompt's ``tokens`` and computed the others."""
        shadow = self.dice.choice(self.shadows)
        self.prompts += 1
        self.tokens += tokens
        self.cached += cached
        self.blind += found(shadow, names, tokens, block_size)
        shadow.keep(names)

    def replayed(self, proxy: str, now: float) -> None:
        """``proxy`` was sent a snapshot."""
        self.replays.setdefault(proxy, now)

    def told(self, now: float) -> bytes:
        """``Counts`` as JSON."""
        return msgspec.json.encode(
            Counts(now, self.prompts, self.tokens, self.cached, self.blind, self.replays)
        )


def found(holding: Holding, names: Sequence[bytes], tokens: int, block_size: int) -> int:
    """Tokens of a prompt that need no computing; the last one always does, as in an engine."""
    return min(holding.held(names) * block_size, tokens - 1)
