"""What the scheduler half tells the worker half with each engine step."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.tier import TierOp
from kvstore.transfer import Prompt
from kvstore.wiping import NO_WIPES, Wipes


@dataclass(frozen=True)
class Opening:
    """A prompt's blocks before ``stop`` are to be shipped.

    Its pages are leased until then (host's monotonic seconds).
    """

    transfer: bytes
    request: str
    prompt: Prompt
    lease_until: float
    stop: int


@dataclass(frozen=True)
class Supply:
    """Blocks of a transfer: (group, position) to block id."""

    transfer: bytes
    pages: dict[tuple[int, int], int]


@dataclass
class Orders:
    """One step's orders, in the order in which the worker carries them out.

    Before the step's forward pass: ``withdrawals``, ``wipes``, ``openings``,
    ``supplies_before``, ``loads``, ``parked``. After it: ``supplies_after``, ``stores``,
    ``closings``, ``released``, ``resumed``.
    ``withdrawals`` names (request, transfer) pairs whose pages the engine takes back. ``parked``
    requests are shipped as they are, and wait as if they were loaded: until they are released, as
    all are that wait for our report, or ``resumed``, to be computed after all.
    ``idle``: the engine computes nothing in this step.
    """

    withdrawals: list[tuple[str, bytes | None]] = field(default_factory=list)
    wipes: Wipes = NO_WIPES
    openings: list[Opening] = field(default_factory=list)
    supplies_before: list[Supply] = field(default_factory=list)
    loads: list[TierOp] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)
    supplies_after: list[Supply] = field(default_factory=list)
    stores: list[TierOp] = field(default_factory=list)
    closings: list[bytes] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    idle: bool = False
