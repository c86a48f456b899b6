"""Pages in this machine's memory: overwriting blocks clears all their layers and nothing else."""

from __future__ import annotations

import pytest
import torch

from kvstore.pages import HostPages

LAYERS, BLOCKS = 3, 7


def caches() -> list[torch.Tensor]:
    """Layers in one allocation, each block one run, as vLLM has them."""
    whole = torch.ones((LAYERS, BLOCKS, 2, 4, 8), dtype=torch.float32)
    return list(whole.unbind())


@pytest.mark.parametrize("blocks", [[0], [6, 2], [1, 2, 3], list(range(BLOCKS)), []])
def test_wiped_blocks_are_zero_in_every_layer_and_no_other_is(blocks: list[int]) -> None:
    layers = caches()
    HostPages(layers).wipe(blocks)
    for layer in layers:
        found = [block for block in range(BLOCKS) if not layer[block].any()]
        assert found == sorted(blocks)
        assert all(layer[block].all() for block in range(BLOCKS) if block not in blocks)


@pytest.mark.parametrize("block", [-1, BLOCKS])
def test_a_block_outside_the_pages_is_refused_not_wrapped(block: int) -> None:
    layers = caches()
    with pytest.raises(IndexError, match=str(block)):
        HostPages(layers).wipe([block])
    assert all(layer.all() for layer in layers)
