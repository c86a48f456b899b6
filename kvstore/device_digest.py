"""Digests of blocks in device memory, made where the blocks are: 16 bytes for each.

Host digests (xxh3) would bring every byte over the bus first. This one is two weighted sums over
the block's 32-bit halves of words, modulo 2^64, with fixed weights: multilinear hashing (J. L.
Carter and M. N. Wegman, "Universal classes of hash functions", 1979; D. Lemire and O. Kaser,
"Strongly universal string hashing is fast", 2014). The weights are odd, so one flipped bit always
changes both sums; any other accident slips through with a chance of at most 2^-64.

It tells damage, not forgery: the weights are no secret.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import numpy as np
import torch

DIGEST_BYTES = 16
_SEED = 0x6B76_6665_7272_7931
_SIZES = 16


def block_digests(run: torch.Tensor, block_bytes: int) -> tuple[bytes, ...]:
    """The digests of a run's blocks (contiguous int8, any device), and wait for them.

    ``block_bytes`` is a multiple of 8. Queued on the current stream.
    """
    halves = run.view(-1, block_bytes).view(torch.int32)
    weights = _weights(halves.shape[1], run.device)
    if run.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from kvstore.paged_kernels import weighted_sums

        sums = weighted_sums(halves, weights)
    else:
        wide = halves.to(torch.int64)
        sums = torch.stack([(wide * row).sum(dim=1) for row in weights], dim=1)
    found = sums.cpu().numpy().tobytes()
    return tuple(found[at : at + DIGEST_BYTES] for at in range(0, len(found), DIGEST_BYTES))


@lru_cache(_SIZES)
def _weights(halves: int, device: torch.device) -> torch.Tensor:
    """int64 ``[2, halves]``, odd, the same on every machine."""
    raw = np.random.PCG64(_SEED).random_raw(2 * halves) | np.uint64(1)
    return torch.from_numpy(raw.view(np.int64).reshape(2, halves)).to(device)
