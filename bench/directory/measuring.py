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
from kvstore.index import Directory, Residency

_PROMPTS = 512
_TURNS = 50
_LOOKUPS = 20
"""Of one world before the next one's turn: few, so that all meet the same swings of the machine."""


@dataclass
class Taken:
    """What a run has measured, round by round: seconds of a lookup, block operations per second.

    ``each``: seconds of a lookup with every worker's figure read off. ``intake`` by how many
    messages came together; ``memory``: bytes by which the process grew with each world;
    ``entries``: what that holds.
    """

    lookups: dict[Shape, list[float]] = field(default_factory=dict)
    each: dict[Shape, list[float]] = field(default_factory=dict)
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
        for ask, kept in ((_grouped, taken.lookups), (_each, taken.each)):
            seconds: dict[Shape, list[float]] = {shape: [] for shape in prompts}
            for _ in range(_TURNS):
                for world in source.sample(worlds, len(worlds)):
                    chosen = source.choices(prompts[world.shape], k=_LOOKUPS)
                    seconds[world.shape] += _lookups(world.directory, chosen, ask)
            for shape, found in seconds.items():
                kept.setdefault(shape, []).append(median(found))
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


def _lookups(
    directory: Directory, prompts: Sequence[list[bytes]], ask: Callable[[Residency], object]
) -> list[float]:
    """Seconds of each."""
    seconds = []
    for names in prompts:
        began = time.perf_counter()
        ask(directory.held(names))
        seconds.append(time.perf_counter() - began)
    return seconds


def _grouped(found: Residency) -> object:
    return found


def _each(found: Residency) -> object:
    return dict(found)
