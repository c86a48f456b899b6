"""A model made on the spot: a Llama of random weights, and the default model's tokenizer.

Small, so that there can be as many requests as a p99 wants; what is measured is waiting and
finding, and neither looks at what an answer says.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.flooding.settings import FloodFailed

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_LAYERS, _KV_HEADS, _HEAD, _BYTES = 6, 2, 64, 2

TOKEN_BYTES = 2 * _LAYERS * _KV_HEADS * _HEAD * _BYTES
"""Of KV, in bfloat16."""


def write_model(folder: Path, tokenizer: Path) -> Path:
    """The same weights in every run. Returns ``folder``. Raises FloodFailed."""
    for name in _TOKENIZER:
        if not (tokenizer / name).is_file():
            raise FloodFailed(f"{tokenizer} has no {name}: run `make install`")
    # Both take seconds to load.
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=_KV_HEADS,
        head_dim=_HEAD,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(tokenizer / name, folder / name)
    return folder
