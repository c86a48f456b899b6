"""vLLM's block pool, with tenants in it and as vLLM has it, under vLLM's own cache manager."""

from __future__ import annotations

import itertools
from typing import Any, TypeAlias

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from bench.isolation.caches import Tier
from bench.load.traces import MOONCAKE_BLOCK
from bench.simulation.prompts import Prompt
from kvstore.engine_pool import adopt
from kvstore.salts import Scope, salt

Asked: TypeAlias = Any
"""vLLM's ``Request``."""

_SALT = salt(bytes(32), Scope("only", 0))
_LONGEST = 1 << 20


class Plain:
    """vLLM's own. See Memory."""

    def __init__(self, blocks: int) -> None:
        init_none_hash(sha256_cbor)
        spec = FullAttentionSpec(
            block_size=MOONCAKE_BLOCK, num_kv_heads=1, head_size=64, dtype=torch.float32
        )
        config = KVCacheConfig(
            num_blocks=blocks + 1,  # one of them is never given away
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        self.manager: Any = KVCacheManager(
            config,
            max_model_len=_LONGEST,
            scheduler_block_size=MOONCAKE_BLOCK,
            hash_block_size=MOONCAKE_BLOCK,
            enable_kv_cache_events=False,
        )
        self._numbers = itertools.count()

    def serve(self, prompt: Prompt) -> int:
        """See Memory. A prompt that does not fit is not computed at all."""
        names = list(prompt.whole)
        asked = Request(
            request_id=str(next(self._numbers)),
            prompt_token_ids=[0] * prompt.tokens,
            sampling_params=SamplingParams(max_tokens=1),
            pooling_params=None,
            cache_salt=_SALT,
            # A trace names blocks as prompts begin with them, and not their tokens.
            block_hasher=lambda _request: names,
        )
        blocks, found, *_ = self.manager.get_computed_blocks(asked)
        if self.manager.allocate_slots(asked, prompt.tokens - found, found, blocks) is None:
            return 0
        self.allocated(asked)
        asked.num_computed_tokens = prompt.tokens
        self.manager.free(asked)
        return int(found) // MOONCAKE_BLOCK

    def allocated(self, asked: Asked) -> None:
        """A request has got its blocks."""

    def close(self) -> None:
        """See Memory."""


class WithTenants(Plain):
    """As kvferry's connectors make it."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self._pool = adopt(self.manager.block_pool)

    def allocated(self, asked: Asked) -> None:
        """See Plain. The connectors' scheduler halves say whose blocks these are."""
        for table in self.manager.get_block_ids(asked.request_id):
            self._pool.claim(asked.cache_salt, table)


ENGINE = Tier("gpu", WithTenants, Plain, "vllm")
