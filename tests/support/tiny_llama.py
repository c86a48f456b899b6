"""A Llama small enough for two processes on two cores, with heads that two ranks can share."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_tiny_llama(folder: Path, tokenizer: Path) -> Path:
    """Four query and two KV heads, the same random weights in every run; returns ``folder``.

    The weights are large, so that what a prompt says decides what follows.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(tokenizer / name, folder / name)
    return folder
