"""vLLM's own cache manager over a pool of a few blocks, driven as its scheduler drives it."""

from __future__ import annotations

from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request

BLOCK = 4
WINDOW = 6
LONGEST = 64
SHAPE = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 64, "dtype": torch.float32}

HASHER = get_request_block_hasher(BLOCK, sha256_cbor)


def manager(blocks: int, *, sliding: bool) -> Any:
    """A cache manager with one full group and, if ``sliding``, one with a window."""
    init_none_hash(sha256_cbor)
    groups = [KVCacheGroupSpec(["full"], FullAttentionSpec(**SHAPE))]
    if sliding:
        spec = SlidingWindowSpec(**SHAPE, sliding_window=WINDOW)
        groups.append(KVCacheGroupSpec(["sliding"], spec))
    config = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    return KVCacheManager(
        config,
        max_model_len=LONGEST,
        scheduler_block_size=BLOCK,
        hash_block_size=BLOCK,
        enable_kv_cache_events=True,
    )


def plain_pool(blocks: int) -> Any:
    """vLLM's pool by itself."""
    init_none_hash(sha256_cbor)
    return BlockPool(
        blocks, enable_caching=True, hash_block_size=BLOCK, enable_kv_cache_events=True
    )


def request(name: str, tokens: list[int], salt: str | None) -> Any:
    """vLLM's own request, with its block hashes."""
    return Request(
        request_id=name,
        prompt_token_ids=tokens,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        cache_salt=salt,
        block_hasher=HASHER,
    )
