"""Paged gather and scatter on a real device, against page-by-page indexing."""

from __future__ import annotations

import importlib.util
import random
import threading

import numpy as np
import pytest
import torch

from kvstore import device_pages
from kvstore.device_digest import block_digests
from kvstore.device_pages import DevicePages, LayerPages
from tests.gpu.pages import LAYERS, contents, layers

BLOCKS = 40
PAGES = [8, 24, 12 << 10, 32 << 10, 64 << 10, 512 << 10]


def some_blocks(seed: int, count: int = 17) -> list[int]:
    return random.Random(seed).sample(range(BLOCKS), count)


@pytest.fixture(params=["triton", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Triton, and as if it were not installed."""
    find = importlib.util.find_spec
    if request.param == "torch":
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "triton" else find(name)
        )
    elif find("triton") is None:
        pytest.skip("Triton is not installed")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("page_bytes", PAGES)
def test_a_gathered_run_is_every_page_in_order(page_bytes: int) -> None:
    pages, blocks = layers(BLOCKS, page_bytes), some_blocks(1)
    run = torch.zeros(len(blocks) * LAYERS * page_bytes, dtype=torch.int8, device="cuda")
    LayerPages(pages).gather_device(blocks, run)
    np.testing.assert_array_equal(run.cpu().numpy().view(np.uint8), contents(pages, blocks))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("page_bytes", PAGES)
def test_a_scattered_run_changes_the_pages_named_and_no_other(page_bytes: int) -> None:
    source, target = layers(BLOCKS, page_bytes), layers(BLOCKS, page_bytes, seed=2)
    others = [block for block in range(BLOCKS) if block not in some_blocks(2)]
    before = contents(target, others)
    run = torch.zeros(17 * LAYERS * page_bytes, dtype=torch.int8, device="cuda")
    LayerPages(source).gather_device(some_blocks(1), run)
    LayerPages(target).scatter_device(some_blocks(2), run)
    np.testing.assert_array_equal(
        contents(target, some_blocks(2)), contents(source, some_blocks(1))
    )
    np.testing.assert_array_equal(contents(target, others), before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("memory", ["pageable", "pinned by torch", "pinned by us", "read-only"])
@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("blocks_at_once", [3, 100])
def test_to_the_host_and_back(
    monkeypatch: pytest.MonkeyPatch, memory: str, straight: bool, blocks_at_once: int
) -> None:
    page_bytes = 32 << 10
    monkeypatch.setattr(device_pages, "STAGING_BYTES", blocks_at_once * LAYERS * page_bytes)
    source, target = layers(BLOCKS, page_bytes), layers(BLOCKS, page_bytes, seed=2)
    limit = page_bytes if straight else page_bytes + 1
    leaving = DevicePages(source, straight_bytes=limit)
    entering = DevicePages(target, straight_bytes=limit)
    size = 17 * LAYERS * page_bytes
    buffer = torch.zeros(size, dtype=torch.int8, pin_memory=memory == "pinned by torch")
    array = buffer.numpy().view(np.uint8)
    if memory == "pinned by us":
        leaving.pin(array)
    try:
        leaving.gather(some_blocks(1), array)
        np.testing.assert_array_equal(array, contents(source, some_blocks(1)))
        array.flags.writeable = memory != "read-only"
        entering.scatter(some_blocks(2), array)
        np.testing.assert_array_equal(contents(target, some_blocks(2)), array)
    finally:
        if memory == "pinned by us":
            leaving.unpin(array)


def test_pinning_makes_memory_page_locked_until_it_is_unpinned() -> None:
    pages = DevicePages(layers(BLOCKS, 4096))
    array = np.zeros(1 << 20, dtype=np.uint8)
    pages.pin(array)
    assert torch.from_numpy(array[1 << 19 :]).is_pinned()
    pages.unpin(array)
    assert not torch.from_numpy(array).is_pinned()


def test_what_the_engine_has_queued_is_in_the_pages_after_the_fence() -> None:
    pages = layers(BLOCKS, 64 << 10)
    moved = DevicePages(pages)
    slow = torch.rand((4096, 4096), device="cuda")
    for _ in range(20):
        slow = slow @ slow.clamp(max=0.001)
    for layer in pages:
        layer.fill_(7)
    moved.fence()
    array = np.zeros(LAYERS * (64 << 10), dtype=np.uint8)
    worker = threading.Thread(target=moved.gather, args=([5], array))
    worker.start()
    worker.join(30.0)
    assert (array == 7).all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("page_bytes", PAGES)
@pytest.mark.parametrize("straight", [False, True])
def test_wiped_pages_are_zero_and_no_others(page_bytes: int, straight: bool) -> None:
    pages, wiped = layers(BLOCKS, page_bytes), some_blocks(3)
    others = [block for block in range(BLOCKS) if block not in wiped]
    before = contents(pages, others)
    DevicePages(pages, straight_bytes=page_bytes if straight else page_bytes + 1).wipe(wiped)
    assert not contents(pages, wiped).any()
    np.testing.assert_array_equal(contents(pages, others), before)


def test_wiping_comes_after_what_the_engine_has_queued_and_before_what_it_queues() -> None:
    pages = layers(BLOCKS, 64 << 10)
    moved = DevicePages(pages)
    slow = torch.rand((4096, 4096), device="cuda")
    for _ in range(20):
        slow = slow @ slow.clamp(max=0.001)
    for layer in pages:
        layer.fill_(7)
    moved.wipe([5, 6])
    for layer in pages:
        layer[6].fill_(3)
    assert not contents(pages, [5]).any()
    assert (contents(pages, [6]) == 3).all()
    assert (contents(pages, [4]) == 7).all()


def test_a_block_outside_the_pages_is_refused() -> None:
    pages = DevicePages(layers(BLOCKS, 4096))
    with pytest.raises(IndexError, match="blocks 0 to 39"):
        pages.gather([BLOCKS], np.zeros(LAYERS * 4096, dtype=np.uint8))
    with pytest.raises(IndexError, match="blocks 0 to 39"):
        pages.wipe([BLOCKS])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("page_bytes", [8, 12 << 10, 64 << 10])
def test_digests_are_the_same_as_on_the_cpu(page_bytes: int) -> None:
    pages, blocks = layers(BLOCKS, page_bytes), some_blocks(1)
    run = torch.zeros(len(blocks) * LAYERS * page_bytes, dtype=torch.int8, device="cuda")
    LayerPages(pages).gather_device(blocks, run)
    found = block_digests(run, LAYERS * page_bytes)
    assert found == block_digests(run.cpu(), LAYERS * page_bytes)
    assert len(set(found)) == len(blocks)
