"""How much is measured, of which load, with which quotas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.errors import BenchError

FLOOR, LIMIT = 0.45, 0.5
"""Of every tier, each tenant's reserved part, which is its quota here, and the most it may have."""

FLOOD = 10
"""Times its quota that the flooding tenant's working set is."""

INSIDE = 0.9
"""Times its quota that every other working set is."""


Within = Literal["gpu", "dram"]
"""The tier whose quota working sets fit, but for the flood."""

DRAM_GIB: dict[Within, float] = {"gpu": 0.125, "dram": 0.5}
"""Of the DRAM tier. Where engines are to find everything it is as small as their own caches; where
they are not, several times as large."""


class FloodFailed(BenchError):
    """The load could not be put on as it is meant."""


@dataclass(frozen=True)
class Amounts:
    """``rounds``: of a slice of either arm. ``seconds``: of a slice; ``lead`` seconds before it
    are not counted. ``utilization``: of the time, what prefills would take of one worker while the
    other tenant floods, each of them alone. ``document`` tokens of a prompt are found again,
    ``question`` tokens never; ``output``: of an answer. ``kv_gib``: of each engine's cache.
    ``control``: rounds without quotas.
    """

    rounds: int = 12
    seconds: float = 40.0
    lead: float = 4.0
    utilization: float = 0.4
    document: int = 1024
    question: int = 32
    output: int = 8
    kv_gib: float = 0.125
    control: int = 2
    seed: int = 0
    within: Within = "gpu"

    @property
    def dram_gib(self) -> float:
        """Of the DRAM tier."""
        return DRAM_GIB[self.within]
