"""What the DRAM tier's objects hold of a model's KV cache groups. Pure.

A **chunk** holds the blocks of every full-attention group for ``chunk_tokens`` tokens. A
**window** holds, of every sliding group, the blocks that the token at a chunk's end attends to:
the engine gives a sliding group's earlier blocks away while it computes, so they are not kept.
A prompt can be resumed at a chunk's end where all chunks before it and its window are held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvstore.errors import ConfigError
from kvstore.layout import KVGroup, Place

Part = Literal["chunks", "window"]
NULL_BLOCK = 0
"""The id in vLLM's block tables of what a sliding group has given away."""


@dataclass(frozen=True)
class TierShape:
    """How a prompt's blocks are laid into objects: position by position, group by group.

    Raises ConfigError where chunks are not whole blocks.
    """

    groups: tuple[KVGroup, ...]
    block_size: int
    chunk_tokens: int

    def __post_init__(self) -> None:
        if self.chunk_tokens % self.block_size:
            raise ConfigError(
                f"dram.chunk_tokens ({self.chunk_tokens}) must be a multiple of the engine's "
                f"block size ({self.block_size})"
            )

    @property
    def windowed(self) -> bool:
        """Whether resuming needs a window."""
        return any(group.window is not None for group in self.groups)

    @property
    def chunk_blocks(self) -> int:
        """Blocks of one chunk."""
        return len(self.chunks(0, self.chunk_tokens))

    @property
    def window_blocks(self) -> int:
        """Blocks of the largest window."""
        longest = max((group.window or 0 for group in self.groups), default=0)
        chunks = -(-longest // self.chunk_tokens) + 1 if longest else 0
        return len(self.window(chunks * self.chunk_tokens))

    def places(self, part: Part, start: int, end: int) -> list[Place]:
        """The blocks of a part of a prompt: chunks of ``[start, end)`` or the window at ``end``."""
        return self.window(end) if part == "window" else self.chunks(start, end)

    def chunks(self, start: int, end: int) -> list[Place]:
        """The blocks of the chunks of tokens ``[start, end)``."""
        full = [at for at, group in enumerate(self.groups) if group.window is None]
        positions = range(start // self.block_size, end // self.block_size)
        return [(group, position) for position in positions for group in full]

    def window(self, end: int) -> list[Place]:
        """The blocks of the window before token ``end``.

        It begins where the last token before ``end`` may look: the engine computes that one again
        when a whole prompt has been loaded.
        """
        places = [
            (number, position)
            for number, group in enumerate(self.groups)
            if group.window is not None
            for position in range(
                group.first_live(end - 1, self.block_size), end // self.block_size
            )
        ]
        return sorted(places, key=lambda place: (place[1], place[0]))
