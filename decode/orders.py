"""What the scheduler half tells the worker half with each engine step."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.messages import Begun
from kvstore.transfer import Prompt
from kvstore.wiping import NO_WIPES, Wipes


@dataclass(frozen=True)
class FetchOrder:
    """Fetch a prompt's blocks: of KV group ``g`` positions ``first[g]`` to ``stop``.

    ``block_ids[g]`` are the blocks they go into. ``stop`` 0 tells the sender that nothing is
    wanted. ``arrived`` (the request joined the engine's queue) and ``deadline`` are in the host's
    monotonic seconds.
    """

    transfer: bytes
    request: str
    peer: str
    sender_generation: str
    prompt: Prompt
    first: tuple[int, ...]
    stop: int
    block_ids: tuple[tuple[int, ...], ...]
    local_tokens: int
    prompt_tokens: int
    arrived: float
    deadline: float


@dataclass
class Orders:
    """One step's orders. ``aborts`` come first: their pages may be given away in this step.

    Then ``wipes``, of pages that this step may write.

    ``begun``: requests whose first step this is, to be told to the gate after their fetches' ends.
    ``idle``: the engine computes nothing in this step and only waits.
    """

    aborts: list[bytes] = field(default_factory=list)
    wipes: Wipes = NO_WIPES
    fetches: list[FetchOrder] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    idle: bool = False
