"""What a figure is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bound:
    """What a metric is held to."""

    metric: str
    kind: Literal["at most", "at least"]
    limit: float

    def kept(self, value: float) -> bool:
        """Whether it was."""
        return value <= self.limit if self.kind == "at most" else value >= self.limit
