"""What vLLM promises about KV cache groups: windows, null blocks, and blocks that are held."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import supports_hma
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    SlidingWindowSpec,
)

from decode.connector import DecodeConnector
from kvstore.engine_facts import block_bytes_of, groups_of
from kvstore.engine_pool import adopt
from kvstore.errors import ConfigError
from kvstore.layout import KVGroup
from kvstore.tier_shape import NULL_BLOCK
from prefill.connector import PrefillConnector

BLOCK = 32
SHAPE = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 64, "dtype": torch.float32}


def sliding(window: int) -> SlidingWindowSpec:
    return SlidingWindowSpec(**SHAPE, sliding_window=window)


def pool(blocks: int = 10) -> BlockPool:
    return BlockPool(blocks, enable_caching=True, hash_block_size=BLOCK)


def config(*specs: Any) -> SimpleNamespace:
    groups = [KVCacheGroupSpec([f"layer.{at}"], spec) for at, spec in enumerate(specs)]
    return SimpleNamespace(kv_cache_groups=groups)


@pytest.mark.parametrize("window", [1, 31, 32, 33, 128, 512])
def test_a_window_leaves_blocks_where_vllm_gives_them_away(window: int) -> None:
    manager = SlidingWindowManager(
        sliding(window),
        block_pool=pool(),
        enable_caching=True,
        kv_cache_group_id=0,
        scheduler_block_size=BLOCK,
    )
    group = KVGroup(("layer",), window)
    for computed in range(0, 1200, 7):
        given_away = manager.get_num_skipped_tokens(computed) // BLOCK
        assert group.first_live(computed, BLOCK) == given_away, computed


def test_what_was_given_away_is_block_zero() -> None:
    assert pool().null_block.block_id == NULL_BLOCK


def test_groups_are_read_from_vllms_own_specs() -> None:
    found = groups_of(config(sliding(512), FullAttentionSpec(**SHAPE)))
    assert found == (KVGroup(("layer.0",), 512), KVGroup(("layer.1",), None))


def test_groups_we_cannot_carry_are_refused_by_name() -> None:
    chunked = ChunkedLocalAttentionSpec(**SHAPE, attention_chunk_size=64)
    with pytest.raises(ConfigError, match="ChunkedLocalAttentionSpec"):
        groups_of(config(FullAttentionSpec(**SHAPE), chunked))
    larger = FullAttentionSpec(**{**SHAPE, "block_size": 64})
    with pytest.raises(ConfigError, match="different block sizes"):
        groups_of(config(sliding(512), larger))


def test_held_blocks_are_given_to_nobody_until_they_are_released() -> None:
    blocks = holds = adopt(pool())
    taken = blocks.get_new_blocks(3)
    ids = [block.block_id for block in taken]
    holds.hold(ids[:2])
    blocks.free_blocks(taken)
    left = blocks.get_num_free_blocks()
    assert {block.block_id for block in blocks.get_new_blocks(left)}.isdisjoint(ids[:2])
    holds.release(ids[:2])
    assert {block.block_id for block in blocks.get_new_blocks(2)} == set(ids[:2])


def test_a_blocks_size_is_read_from_vllms_own_allocation() -> None:
    tensors = [
        KVCacheTensor(size=960, layers=[name], layer_stride=480, block_stride=48) for name in "ab"
    ]
    ranks = SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=2))
    found = KVCacheConfig(num_blocks=10, kv_cache_tensors=tensors, kv_cache_groups=[])
    assert block_bytes_of(ranks, found) == 192


def test_vllm_gives_each_group_its_own_blocks_to_connectors_that_say_so() -> None:
    assert supports_hma(PrefillConnector)
    assert supports_hma(DecodeConnector)
