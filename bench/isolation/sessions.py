"""Conversations of one tenant that go on by turns, where no recorded trace is at hand. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from bench.load.traces import MOONCAKE_BLOCK, Traced

_GOING_ON = 400
_SYSTEM = 2
"""Blocks that all of them begin with."""
_LEAST, _MOST = 1, 12
"""Blocks that a turn adds."""
_LEAVES = 0.2
"""How likely a turn is a conversation's last."""


def sessions(requests: int, seed: int) -> list[Traced]:
    """So many turns. One that has begun is the next to go on as likely as any other."""
    return list(itertools.islice(_turns(random.Random(seed)), requests))


def _turns(dice: random.Random) -> Iterator[Traced]:
    blocks = itertools.count(_SYSTEM)
    talks: list[tuple[int, ...]] = []
    for number in itertools.count():
        if len(talks) < _GOING_ON:
            talks.append(tuple(range(_SYSTEM)))
        at = dice.randrange(len(talks))
        talk = talks[at] + tuple(itertools.islice(blocks, dice.randint(_LEAST, _MOST)))
        yield Traced(float(number), len(talk) * MOONCAKE_BLOCK, 1, talk)
        if dice.random() < _LEAVES:
            talks[at] = tuple(range(_SYSTEM))
        else:
            talks[at] = talk
