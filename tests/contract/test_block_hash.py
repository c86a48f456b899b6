"""Our block names are the engine's: the chain vLLM computes, block for block."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from kvstore.blockhash import block_chain

TOKENS = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=200)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)


@pytest.fixture(autouse=True, scope="module")
def engine_root() -> None:
    """What an engine with ``--prefix-caching-hash-algo sha256_cbor`` does at its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONHASHSEED", raising=False)
        init_none_hash(sha256_cbor)


def engine_chain(
    tokens: list[int], block_size: int, salt: str, adapter: tuple[str, str] | None
) -> list[bytes]:
    """The hashes an engine gives the full blocks of a request."""
    request = Request(
        request_id="r",
        prompt_token_ids=tokens,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        lora_request=LoRARequest(adapter[0], 1, adapter[1]) if adapter else None,
        cache_salt=salt,
        block_hasher=get_request_block_hasher(block_size, sha256_cbor),
    )
    return [bytes(block) for block in request.block_hashes]


@settings(max_examples=200, deadline=None)
@given(TOKENS, st.integers(1, 64), TEXT, st.none() | st.tuples(TEXT, TEXT))
def test_equals_the_engines_chain(
    tokens: list[int], block_size: int, salt: str, adapter: tuple[str, str] | None
) -> None:
    ours = block_chain(tokens, block_size, salt, adapter)
    assert ours == engine_chain(tokens, block_size, salt, adapter)
    assert len(ours) == len(tokens) // block_size


@pytest.mark.parametrize("adapter", [None, ("poet", "/adapters/poet")])
@pytest.mark.parametrize("length", [31, 32, 33, 2513])
def test_equals_the_engines_chain_for_prompts_as_they_come(
    length: int, adapter: tuple[str, str] | None
) -> None:
    tokens = [(7919 * position) % 49152 for position in range(length)]
    salt = "5a" * 32
    assert block_chain(tokens, 32, salt, adapter) == engine_chain(tokens, 32, salt, adapter)


@given(TOKENS, st.integers(1, 8), st.integers(0, 20))
def test_a_chain_continued_is_the_chain(tokens: list[int], block_size: int, known: int) -> None:
    chain = block_chain(tokens, block_size, "a" * 64)
    assert block_chain(tokens, block_size, "a" * 64, known=chain[:known]) == chain


def test_tenants_and_adapters_share_no_name() -> None:
    tokens = list(range(96))
    chains = [
        block_chain(tokens, 32, "a" * 64),
        block_chain(tokens, 32, "b" * 64),
        block_chain(tokens, 32, "a" * 64, ("poet", "/adapters/poet")),
        block_chain(tokens, 32, "a" * 64, ("poet", "/adapters/other")),
    ]
    assert len({block for chain in chains for block in chain}) == 12
