"""Where a request stands on a prefill worker.

A request's stages::

    NEW ── tier holds more than the engine ──▶ LOADING ── loaded or failed ──▶ COMPUTING
     ├─── only decode's part is missing ─────▶ SHIPPING ── nobody ended it ──▶ COMPUTING
     └──────────────── otherwise ─────────────────────────────────────────────▶ COMPUTING
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from kvstore.tier import TierKey, is_kept
from prefill.tier_orders import Copied


class Stage(enum.Enum):
    """Where a request stands."""

    NEW = enum.auto()
    LOADING = enum.auto()
    SHIPPING = enum.auto()
    COMPUTING = enum.auto()


@dataclass
class Tracked:
    """A request between its first sight and its end, as prefill's scheduler half knows it."""

    key: TierKey
    transfer: bytes | None
    lease_until: float
    leaves_rest: bool
    stage: Stage = Stage.NEW
    only_ships: bool = False
    local: int = 0
    loading: int = 0
    dram: int = 0
    begun: float | None = None
    copied: Copied = field(default_factory=Copied)
    supplied: list[int] = field(default_factory=list)
    opened: bool = False
    told_until: float = 0.0
    waits_until: float = 0.0
    ordered_stores: bool = False

    def __post_init__(self) -> None:
        self.kept = is_kept(self.key.salt)
