"""How long a lookup takes in worlds of several shapes, and how fast changes are taken in."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from bench.directory.intake import BURST, Intake
from bench.directory.world import Shape, World
from bench.statistics import median

_PROMPTS = 64
_TURNS = 50
_LOOKUPS = 20
"""Of one world before the next one's turn: enough to be at home in the processor's caches again,
and few enough for all worlds to meet the same swings of the machine."""


@dataclass
class Taken:
    """What a run has measured, round by round: seconds of a lookup, block operations per second.

    ``intake`` by how many messages came together; ``memory``: bytes by which the process grew with
    each world; ``entries``: what that holds.
    """

    lookups: dict[Shape, list[float]] = field(default_factory=dict)
    intake: dict[int, list[float]] = field(default_factory=dict)
    memory: dict[Shape, int] = field(default_factory=dict)
    entries: dict[Shape, int] = field(default_factory=dict)


def measure(shapes: Sequence[Shape], rounds: int, seed: int, say: Callable[[str], None]) -> Taken:
    """Fills a world of each shape; every round asks all of them, in another order."""
    taken, source = Taken(), random.Random(seed)
    worlds = [_filled(shape, taken, say) for shape in shapes]
    prompts = {world.shape: _prompts(world, source) for world in worlds}
    intake = Intake()
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        seconds: dict[Shape, list[float]] = {shape: [] for shape in prompts}
        for _ in range(_TURNS):
            for world in source.sample(worlds, len(worlds)):
                seconds[world.shape] += _lookups(world, prompts[world.shape], source)
        for shape, each in seconds.items():
            taken.lookups.setdefault(shape, []).append(median(each))
        for burst in (BURST, 1):
            taken.intake.setdefault(burst, []).append(intake.per_second(burst))
    return taken


def _filled(shape: Shape, taken: Taken, say: Callable[[str], None]) -> World:
    say(f"filling {shape.label}")
    process = psutil.Process()
    before = process.memory_info().rss
    world = World(shape)
    taken.memory[shape] = process.memory_info().rss - before
    taken.entries[shape] = world.entries
    return world


def _prompts(world: World, source: random.Random) -> list[list[bytes]]:
    chosen = (source.randrange(world.shape.conversations) for _ in range(_PROMPTS))
    return [world.prompt(one) for one in chosen]


def _lookups(world: World, prompts: Sequence[list[bytes]], source: random.Random) -> list[float]:
    """Seconds of some."""
    seconds = []
    for _ in range(_LOOKUPS):
        names = source.choice(prompts)
        began = time.perf_counter()
        world.directory.held(names)
        seconds.append(time.perf_counter() - began)
    return seconds
