"""Who asks in the deterministic part, and how long prompts have to be to lie where they are meant
to lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.audit.asking import COMPLETIONS, Answer, Asker, Known, answered
from bench.audit.deployment import Deployment, TestTenant
from bench.audit.restarting import Restarter
from bench.client import Client

Fields = Mapping[str, Any]
_NONE: Fields = {}

DECODE_BLOCKS = 4
"""Whole blocks of a prompt that decode is to hold."""


@dataclass(frozen=True)
class Sizes:
    """``block``: tokens that an engine keeps together; ``chunk``: that the DRAM tier does."""

    block: int
    chunk: int

    @property
    def below_chunk(self) -> int:
        """Whole blocks that are no whole chunk, so that DRAM cannot be where they are found."""
        return max(2 * self.block, self.chunk - self.block)

    @property
    def part(self) -> int:
        """Less than a block."""
        return max(1, self.block // 2)

    @property
    def rest(self) -> int:
        """After a prefix: enough that decode, which holds the prefix, does not do all alone."""
        return 3 * self.block

    def whole_blocks(self, tokens: int) -> int:
        """Tokens that a repeat of a prompt finds in an engine: the last one is always computed."""
        return max(0, tokens - 1) // self.block * self.block


@dataclass(frozen=True)
class Scene:
    """``budget``: seconds that emptying an engine's memory may take. ``stranger``: who looks for
    the owner's prompts. ``restarter``: how engines are restarted; None where they must not be.
    """

    deployment: Deployment
    client: Client
    asker: Asker
    sizes: Sizes
    budget: float
    stranger: TestTenant
    restarter: Restarter | None = None

    @property
    def owner(self) -> TestTenant:
        """Whose prompts others look for."""
        return self.deployment.owner

    @property
    def dram(self) -> bool:
        """There is a DRAM tier."""
        return self.deployment.config.dram.enabled

    async def owns(self, prompt: list[int], fields: Fields = _NONE) -> Answer:
        """The owner asks; ``fields`` of the body besides."""
        return await self.asks(self.owner, {"prompt": prompt, **fields})

    async def looks(self, prompt: list[int], fields: Fields = _NONE) -> Answer:
        """The stranger asks."""
        return await self.asks(self.stranger, {"prompt": prompt, **fields})

    async def asks(
        self, tenant: TestTenant, fields: Fields, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A completion whose body has these ``fields``."""
        return await answered(self.asker.post(tenant, COMPLETIONS, fields, headers))

    async def warm(
        self, prompt: list[int], fields: Fields = _NONE, *, dram: bool = False
    ) -> Answer:
        """The owner asks for a new prompt, and all who keep something of it have told so.

        ``dram``: of its whole chunks as well.
        """
        answer = await self.owns(prompt, fields)
        await self.settled(prompt, fields, dram=dram)
        return answer

    async def settled(
        self, prompt: list[int], fields: Fields = _NONE, *, dram: bool = False
    ) -> bool:
        """Whether the index comes to know what is kept of the owner's ``prompt``."""
        wanted = self.kept(len(prompt), dram=dram)
        return await self.asker.until_known(self.owner, {"prompt": prompt, **fields}, wanted)

    async def known(self, tenant: TestTenant, prompt: list[int], fields: Fields = _NONE) -> Known:
        """What the index has of it. Raises RequestFailed."""
        return await self.asker.known(tenant, {"prompt": prompt, **fields})

    def kept(self, tokens: int, *, dram: bool = False) -> Known:
        """What is kept of a prompt of so many ``tokens``."""
        blocks = tokens // self.sizes.block * self.sizes.block
        chunks = tokens // self.sizes.chunk * self.sizes.chunk if dram and self.dram else 0
        return Known(blocks, chunks, blocks)
