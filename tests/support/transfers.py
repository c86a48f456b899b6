"""Transfers to test with: pages full of noise, and what is to be moved between them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from msgspec.structs import replace

from kvstore.layout import KVGroup, KVLayout, Place
from kvstore.messages import PROTOCOL_VERSION, Carriage, Ready
from kvstore.pages import HostPages
from kvstore.receiving import Reservation
from kvstore.transfer import Prompt, ready_mac

GENERATION = "gen"


def layout_of(layers: int, page_bytes: int, groups: int) -> KVLayout:
    """A layout with that many KV groups; every other one slides."""
    names = tuple(KVGroup((f"layer.{at}",), 64 if at % 2 else None) for at in range(groups))
    return KVLayout("m", "e", "bf16", "auto", "LBHNC", "cpu", 32, layers, page_bytes, 0, 1, names)


class Noise:
    """Pages in one allocation, as an engine has them; no two blocks are alike."""

    def __init__(self, layout: KVLayout, blocks: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (layout.layers, blocks, layout.page_bytes)
        tensor = torch.randint(-128, 127, shape, dtype=torch.int8, generator=generator)
        self.pages = HostPages([tensor[layer] for layer in range(layout.layers)])
        self.bytes: np.ndarray = tensor.numpy()
        """int8 ``[layers, blocks, page_bytes]``, the very memory."""

    def of(self, block: int) -> bytes:
        return self.bytes[:, block].tobytes()

    def overwrite(self, blocks: Iterable[int]) -> None:
        """What happens to pages that were given away."""
        self.bytes[:, list(blocks)] = 0x55


@dataclass
class Errand:
    """One transfer: where each wanted place lies at the sender's and belongs at the receiver's."""

    transfer: bytes
    prompt: Prompt
    first: tuple[int, ...]
    stop: int
    source: dict[Place, int] = field(default_factory=dict)
    target: dict[Place, int] = field(default_factory=dict)

    def places(self) -> list[Place]:
        return [(g, at) for g, first in enumerate(self.first) for at in range(first, self.stop)]

    def reservation(self, peer: str, deadline: float, generation: str = GENERATION) -> Reservation:
        ids = tuple(
            tuple(self.target[group, at] for at in range(first, self.stop))
            for group, first in enumerate(self.first)
        )
        return Reservation(self.transfer, peer, generation, self.first, ids, deadline)

    def ready(
        self,
        layout: KVLayout,
        key: bytes,
        carriage: Carriage = "frames",
        generation: str = GENERATION,
    ) -> Ready:
        """Signed with ``key``, for the sender's ``generation``."""
        unsigned = Ready(
            version=PROTOCOL_VERSION,
            transfer=self.transfer,
            sender_generation=generation,
            receiver="decode-0",
            receiver_generation="r",
            fingerprint=layout.fingerprint,
            layout=layout.summary,
            first=self.first,
            stop=self.stop,
            blocks=self.prompt.blocks,
            carriage=carriage,
            route=b"",
            ttl_ms=60_000,
            mac=bytes(32),
        )
        return replace(unsigned, mac=ready_mac(key, unsigned, self.prompt))


class Errands:
    """Draws errands over free blocks of both ends, each block for one place only."""

    def __init__(self, rng: random.Random, source_blocks: int, target_blocks: int) -> None:
        self._rng = rng
        self._source = rng.sample(range(source_blocks), source_blocks)
        self._target = rng.sample(range(target_blocks), target_blocks)

    def draw(self, groups: int, most: int = 8) -> Errand:
        """A prompt of up to ``most`` blocks, of which every group wants another part."""
        rng = self._rng
        blocks = rng.randint(1, most)
        stop = rng.randint(1, blocks)
        first = tuple(rng.randint(0, stop) for _ in range(groups - 1))
        return self.make(blocks, (*first, rng.randint(0, stop - 1)), stop)

    def make(self, blocks: int, first: tuple[int, ...], stop: int) -> Errand:
        rng = self._rng
        prompt = Prompt(rng.randbytes(32).hex(), rng.randbytes(32), blocks)
        errand = Errand(rng.randbytes(16), prompt, first, stop)
        for place in errand.places():
            errand.source[place] = self._source.pop()
            errand.target[place] = self._target.pop()
        return errand

    def move(self, errand: Errand, source: Noise) -> None:
        """The engine took the errand's source away and computed the same KV elsewhere."""
        taken = dict(errand.source)
        for place, block in taken.items():
            errand.source[place] = self._source.pop()
            source.bytes[:, errand.source[place]] = source.bytes[:, block]
        source.overwrite(taken.values())
        self._source[:0] = taken.values()
