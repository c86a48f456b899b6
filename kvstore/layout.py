"""What two workers must agree on before one byte of KV moves between them.

Bytes inside a block are opaque (the CPU kernel packs them by instruction set), so everything that
gives them meaning goes into the fingerprint, and both ends compare it before anything else.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from kvstore.errors import LayoutMismatch
from kvstore.messages import PROTOCOL_VERSION
from kvstore.slices import HeadSlice

Place = tuple[int, int]
"""(KV group, position in the prompt): where a block stands."""


@dataclass(frozen=True)
class KVGroup:
    """Model layers that share one block table.

    A token attends to ``window`` tokens, itself included; None: to all before it.
    """

    layers: tuple[str, ...] = ()
    window: int | None = None

    def first_live(self, computed: int, block_size: int) -> int:
        """The position of the first block that the token after ``computed`` ones attends to.

        Blocks before it hold nothing that is read again; the engine gives them away.
        """
        if self.window is None:
            return 0
        return max(0, computed + 1 - self.window) // block_size


@dataclass(frozen=True)
class KVLayout:
    """The shape contract of one rank's KV cache.

    A block is ``layers`` pages of ``page_bytes`` bytes; on the wire they follow one another in
    layer order. ``isa`` names how bytes are packed inside a page: the instruction set on CPU, the
    device kind elsewhere. ``engine`` is the engine's name and version: packing may change with it.
    ``rank`` of ``ranks``: which part of the model's KV heads the pages hold.
    The ``groups`` share the pages: a block belongs to one of them, and its pages to that group's
    layers in their order.
    """

    model: str
    engine: str
    dtype: str
    kv_dtype: str
    order: str
    isa: str
    block_size: int
    layers: int
    page_bytes: int
    rank: int
    ranks: int
    groups: tuple[KVGroup, ...] = (KVGroup(),)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers of this rank."""
        return self.layers * self.page_bytes

    def of_slice(self, part: HeadSlice, page_bytes: int) -> KVLayout:
        """The layout of one slice, which is the same whatever number of ranks holds it."""
        return replace(self, rank=part.number, ranks=part.count, page_bytes=page_bytes)

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal if and only if two layouts are."""
        fields = sorted((asdict(self) | {"protocol": PROTOCOL_VERSION}).items())
        return hashlib.sha256(repr(fields).encode()).digest()

    @cached_property
    def summary(self) -> str:
        """One line for people."""
        windows = ",".join(str(group.window or "full") for group in self.groups)
        return (
            f"{self.model} {self.dtype}/{self.kv_dtype} {self.order} {self.isa} "
            f"block {self.block_size} layers {self.layers} page {self.page_bytes} B "
            f"groups {windows} rank {self.rank}/{self.ranks} {self.engine} "
            f"protocol {PROTOCOL_VERSION}"
        )

    def require(self, fingerprint: bytes, theirs: str) -> None:
        """Raise LayoutMismatch, naming both sides, unless ``fingerprint`` is this layout's."""
        if fingerprint != self.fingerprint:
            raise LayoutMismatch(f"layouts differ: here {self.summary}; there {theirs}")
