"""A trace's requests as the simulation's prompts: lengths, and names of blocks by tenant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.errors import BadLoad
from bench.load.traces import MOONCAKE_BLOCK, Traced


@dataclass(frozen=True)
class Prompt:
    """``names``: of its blocks, of ``MOONCAKE_BLOCK`` tokens each, the last one perhaps shorter.

    ``whole`` of them, as many as are full, can be found again.
    """

    number: int
    at: float
    tenant: str
    tokens: int
    names: tuple[bytes, ...]

    def held(self, blocks: int) -> int:
        """Tokens that need no computing where ``blocks`` are held: never the last one."""
        return min(blocks * MOONCAKE_BLOCK, self.tokens - 1)

    @property
    def whole(self) -> tuple[bytes, ...]:
        """The names of its full blocks."""
        return self.names[: self.tokens // MOONCAKE_BLOCK]


def prompts(trace: Sequence[Traced], tenants: int) -> list[Prompt]:
    """Every request that names its blocks, of whom there must be some. Raises BadLoad.

    Conversations are dealt to ``tenants``.
    """
    told = [traced for traced in trace if traced.blocks]
    if not told:
        raise BadLoad("the trace names no blocks: nothing in it can be found again")
    return [_prompt(number, traced, tenants) for number, traced in enumerate(told)]


def _prompt(number: int, traced: Traced, tenants: int) -> Prompt:
    tenant = traced.tenant(number, tenants)
    names = tuple(_name(tenant, block) for block in traced.blocks)
    return Prompt(number, traced.at, f"tenant-{tenant}", traced.prompt_tokens, names)


def _name(tenant: int, block: int) -> bytes:
    return hashlib.sha256(f"{tenant}/{block}".encode()).digest()[:16]
