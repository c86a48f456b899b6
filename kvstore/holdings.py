"""What a tier holds of tenants, in as many messages as it takes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.messages import Holding, Tier, Usage

PART = 1024
"""Holdings in one message."""


def usage(worker: str, tier: Tier, capacity: int, held: Sequence[Holding]) -> list[Usage]:
    """``held`` of a tier of ``capacity`` bytes; one message even where nothing is."""
    starts = range(0, len(held) or 1, PART)
    return [
        Usage(worker, tier, capacity, part, len(starts), tuple(held[start : start + PART]))
        for part, start in enumerate(starts)
    ]
