"""Pages of one process gathered by another through CUDA IPC."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

from kvstore.device_pages import LayerPages

SHAPE = (4, 20, 32 << 10)
BLOCKS = [19, 3, 4, 0]


def hold(pipe: Connection[Any, Any]) -> None:
    """The other process: shares its pages, tells what it finds in them at the end."""
    pages = torch.randint(-128, 128, SHAPE, dtype=torch.int8, device="cuda")
    torch.cuda.synchronize()
    pipe.send(torch.multiprocessing.reductions.reduce_tensor(pages))
    pipe.send(pages.cpu().numpy())
    pipe.recv()
    torch.cuda.synchronize()
    pipe.send(pages.cpu().numpy())
    pipe.recv()


@pytest.fixture
def other() -> Any:
    context = torch.multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(there,), daemon=True)
    process.start()
    there.close()
    yield here
    here.close()
    process.join(10.0)
    process.kill()


def received(pipe: Connection[Any, Any]) -> Any:
    assert pipe.poll(120.0), "the other process says nothing"
    return pipe.recv()


def test_pages_of_another_process_are_read_and_written_in_place(other: Any) -> None:
    rebuild, arguments = received(other)
    there = received(other)
    try:
        theirs = rebuild(*arguments)
    except RuntimeError as error:
        pytest.skip(f"the driver opens no memory of another process: {error}")
    pages = LayerPages(list(theirs))
    run = torch.zeros(len(BLOCKS) * pages.block_bytes, dtype=torch.int8, device="cuda")
    pages.gather_device(BLOCKS, run)
    wanted = np.concatenate([there[layer, block] for block in BLOCKS for layer in range(SHAPE[0])])
    np.testing.assert_array_equal(run.cpu().numpy(), wanted)

    pages.scatter_device([1], torch.full((pages.block_bytes,), 7, dtype=torch.int8, device="cuda"))
    torch.cuda.synchronize()
    other.send("written")
    after = received(other)
    assert (after[:, 1] == 7).all()
    np.testing.assert_array_equal(np.delete(after, 1, axis=1), np.delete(there, 1, axis=1))
    del theirs, pages
    other.send("closed")
