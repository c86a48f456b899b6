"""KV pages to move, and what they hold, found without the code under test."""

from __future__ import annotations

import numpy as np
import torch

LAYERS = 4


def layers(blocks: int, page_bytes: int, seed: int = 1) -> list[torch.Tensor]:
    """Device memory of its own for every layer, rows a little apart."""
    random = torch.Generator(device="cuda").manual_seed(seed)
    shape = (blocks, page_bytes + 256)
    return [
        torch.randint(-128, 128, shape, dtype=torch.int8, device="cuda", generator=random)[
            :, :page_bytes
        ]
        for _ in range(LAYERS)
    ]


def contents(pages: list[torch.Tensor], blocks: list[int]) -> np.ndarray:
    """Block after block, each layer after layer."""
    torch.cuda.synchronize()
    host = [layer.cpu().numpy() for layer in pages]
    return np.concatenate([layer[block] for block in blocks for layer in host]).view(np.uint8)
