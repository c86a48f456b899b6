"""Gathered pages: which bytes of which page lie where, on the CPU in the GPU's place.

The device and its streams are stood in for; tests/gpu has the real ones.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from kvstore import device_pages
from kvstore.device_pages import DevicePages, LayerPages
from kvstore.errors import ConfigError

LAYERS, BLOCKS, PAGE = 3, 11, 64


def layers(seed: int = 5) -> list[torch.Tensor]:
    """Layers of one padded allocation each: pages that do not touch."""
    random = torch.Generator().manual_seed(seed)
    shape = (BLOCKS, PAGE + 16)
    wide = [
        torch.randint(-128, 128, shape, dtype=torch.int8, generator=random) for _ in range(LAYERS)
    ]
    return [layer[:, :PAGE] for layer in wide]


def reference(pages: list[torch.Tensor], blocks: list[int]) -> np.ndarray:
    """Block after block, each layer after layer, page by page."""
    rows = [layer[block].numpy() for block in blocks for layer in pages]
    return np.concatenate(rows).view(np.uint8)


class StandInStream:
    def __init__(self, _device: object) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture(autouse=True)
def cpu_for_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.empty

    def unpinned(*args: object, pin_memory: bool = False, **kwargs: object) -> torch.Tensor:
        del pin_memory
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "Stream", StandInStream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch, "empty", unpinned)


@pytest.mark.parametrize("blocks", [[0], [7, 2, 9], [10, 0, 1, 2, 3], list(range(BLOCKS))])
def test_a_run_holds_block_after_block_each_layer_after_layer(blocks: list[int]) -> None:
    pages = layers()
    run = torch.zeros(len(blocks) * LAYERS * PAGE, dtype=torch.int8)
    LayerPages(pages).gather_device(blocks, run)
    np.testing.assert_array_equal(run.numpy().view(np.uint8), reference(pages, blocks))


def test_scattering_writes_the_pages_named_and_no_other() -> None:
    source, target = layers(), layers(seed=6)
    before = [layer.clone() for layer in target]
    blocks, into = [7, 2, 9], [1, 8, 4]
    run = torch.zeros(3 * LAYERS * PAGE, dtype=torch.int8)
    LayerPages(source).gather_device(blocks, run)
    LayerPages(target).scatter_device(into, run)
    np.testing.assert_array_equal(reference(target, into), reference(source, blocks))
    others = [block for block in range(BLOCKS) if block not in into]
    np.testing.assert_array_equal(reference(target, others), reference(before, others))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("straight_bytes", [PAGE, PAGE + 1])
@pytest.mark.parametrize("blocks_at_once", [1, 2, 100])
def test_bytes_that_go_to_host_memory_and_back_are_the_same(
    monkeypatch: pytest.MonkeyPatch, straight_bytes: int, blocks_at_once: int
) -> None:
    monkeypatch.setattr(device_pages, "STAGING_BYTES", blocks_at_once * LAYERS * PAGE)
    source, target = layers(), layers(seed=6)
    blocks, into = [7, 2, 9, 0, 3], [1, 8, 4, 10, 0]
    buffer = np.zeros(5 * LAYERS * PAGE, dtype=np.uint8)
    DevicePages(source, straight_bytes=straight_bytes).gather(blocks, buffer)
    np.testing.assert_array_equal(buffer, reference(source, blocks))
    buffer.flags.writeable = False  # what came from a socket
    DevicePages(target, straight_bytes=straight_bytes).scatter(into, buffer)
    np.testing.assert_array_equal(reference(target, into), buffer)


def test_page_locked_memory_is_copied_without_a_bounce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _self: True)
    monkeypatch.setattr(DevicePages, "_bounced", None)
    pages = layers()
    buffer = np.zeros(2 * LAYERS * PAGE, dtype=np.uint8)
    DevicePages(pages).gather([4, 5], buffer)
    np.testing.assert_array_equal(buffer, reference(pages, [4, 5]))
    DevicePages(pages).scatter([6, 7], buffer)
    np.testing.assert_array_equal(reference(pages, [6, 7]), buffer)


@pytest.mark.parametrize("straight_bytes", [PAGE, PAGE + 1])
def test_wiping_waits_for_the_engine_and_clears_the_pages_named_and_no_other(
    monkeypatch: pytest.MonkeyPatch, straight_bytes: int
) -> None:
    pages, wiped = layers(), [7, 2, 9]
    others = [block for block in range(BLOCKS) if block not in wiped]
    before, fenced = reference(pages, others), []
    moved = DevicePages(pages, straight_bytes=straight_bytes)
    monkeypatch.setattr(moved, "fence", lambda: fenced.append(bool(reference(pages, wiped).any())))
    moved.wipe(wiped)
    assert fenced == [True]
    assert not reference(pages, wiped).any()
    np.testing.assert_array_equal(reference(pages, others), before)


@pytest.mark.parametrize("block", [-1, BLOCKS])
@pytest.mark.parametrize("straight_bytes", [PAGE, PAGE + 1])
def test_a_block_outside_the_pages_is_refused_not_wrapped(
    monkeypatch: pytest.MonkeyPatch, block: int, straight_bytes: int
) -> None:
    pages = DevicePages(layers(), straight_bytes=straight_bytes)
    buffer = np.zeros(LAYERS * PAGE, dtype=np.uint8)
    with pytest.raises(IndexError, match="blocks 0 to 10"):
        pages.gather([block], buffer)
    with pytest.raises(IndexError, match="blocks 0 to 10"):
        pages.scatter([block], buffer)
    monkeypatch.setattr(pages, "fence", lambda: None)
    with pytest.raises(IndexError, match="blocks 0 to 10"):
        pages.wipe([block])


def test_pages_of_no_whole_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="whole words"):
        LayerPages([torch.zeros((4, 12), dtype=torch.int8)])
