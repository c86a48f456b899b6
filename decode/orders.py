"""What the scheduler half tells the worker half with each engine step."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.transfer import Prompt


@dataclass(frozen=True)
class FetchOrder:
    """Fetch a prompt's blocks from position ``first`` on into ``block_ids``.

    With no ``block_ids`` it tells the sender that nothing is wanted. ``deadline`` is in the host's
    monotonic seconds.
    """

    transfer: bytes
    request: str
    peer: str
    sender_generation: str
    prompt: Prompt
    first: int
    block_ids: tuple[int, ...]
    local_tokens: int
    prompt_tokens: int
    deadline: float


@dataclass
class Orders:
    """One step's orders. ``aborts`` come first: their pages may be given away in this step.

    ``idle``: the engine computes nothing in this step and only waits.
    """

    aborts: list[bytes] = field(default_factory=list)
    fetches: list[FetchOrder] = field(default_factory=list)
    idle: bool = False
