"""KV that lies in another process's memory on the same GPU, read through CUDA IPC.

The consumer pulls: the producer's process holds the memory and does nothing meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing

from bench.gpu.figures import Figure, figure, speeds
from bench.gpu.paged import LAYERS, awaited
from kvstore.device_pages import LayerPages

BOUND = 0.8
_PIECE = 64 << 10
_START_SECONDS = 120.0


def produce(pipe: Connection[Any, Any], size: int) -> None:
    """The other process: shares layers of paged KV until the pipe closes."""
    count = max(1, size // (_PIECE * LAYERS))
    shape = (LAYERS, count, _PIECE)
    pages = torch.randint(-128, 128, shape, dtype=torch.int8, device="cuda")
    torch.cuda.synchronize()
    pipe.send(torch.multiprocessing.reductions.reduce_tensor(pages))
    pipe.send(int(pages.sum(dtype=torch.int64)))
    pipe.poll(None)


def figures(size: int, rounds: int) -> Iterator[Figure]:
    """One figure for a contiguous copy, one for pages; why not, where the driver refuses."""
    names = ("ipc_vs_device_copy", "ipc_paged_vs_device_copy")
    context = torch.multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    producer = context.Process(target=produce, args=(there, size), daemon=True)
    producer.start()
    there.close()
    try:
        theirs = _opened(here)
        yield from _measured(names, theirs, rounds)
        del theirs  # closed here before the other process frees it
    except (RuntimeError, EOFError) as error:
        for name in names:
            yield Figure(name, BOUND, missing=str(error).splitlines()[0] if str(error) else "")
    finally:
        here.close()
        producer.join(10.0)
        producer.kill()


def _opened(pipe: Connection[Any, Any]) -> torch.Tensor:
    """The other process's pages, in this one. Raises RuntimeError."""
    if not pipe.poll(_START_SECONDS):
        raise RuntimeError("the other process shared nothing in time")
    rebuild, arguments = pipe.recv()
    pages: torch.Tensor = rebuild(*arguments)
    if int(pages.sum(dtype=torch.int64)) != pipe.recv():
        raise RuntimeError("the shared memory reads differently here")
    return pages


def _measured(names: tuple[str, str], theirs: torch.Tensor, rounds: int) -> Iterator[Figure]:
    ours, source = torch.empty_like(theirs), torch.empty_like(theirs)
    run = ours.view(-1)
    paged = LayerPages(list(theirs))
    blocks = list(reversed(range(theirs.shape[1])))
    found = speeds(
        {
            "within": awaited(partial(ours.copy_, source)),
            "across": awaited(partial(ours.copy_, theirs)),
            "paged": awaited(partial(paged.gather_device, blocks, run)),
        },
        theirs.nbytes,
        rounds,
    )
    yield figure(names[0], BOUND, found["across"], found["within"])
    yield figure(names[1], None, found["paged"], found["within"])
