"""LoRA adapters made up on the spot, strong enough to change what a Llama says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from kvstore.adapters import CONFIG, WEIGHTS

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_adapter(folder: Path, model: Path, seed: int, rank: int = 4, weight: float = 0.1) -> Path:
    """A random adapter of the Llama in ``model``; another ``seed`` makes another one.

    Its parts are about ``weight`` times as large as what they are added to would be, were that of
    unit size. Returns ``folder``.
    """
    described = json.loads((model / "config.json").read_bytes())
    hidden, heads = described["hidden_size"], described["num_attention_heads"]
    head = described.get("head_dim") or hidden // heads
    outer = {"q_proj": heads * head, "o_proj": hidden}
    inner = {"o_proj": heads * head}
    kv = described["num_key_value_heads"] * head
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(described["num_hidden_layers"]):
        for target in TARGETS:
            into, out = inner.get(target, hidden), outer.get(target, kv)
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            shrunk = random.standard_normal((rank, into)) / np.sqrt(into)
            grown = random.standard_normal((out, rank)) * weight
            tensors[f"{name}.lora_A.weight"] = shrunk.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = grown.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config(rank)))
    return folder


def config(rank: int = 4) -> dict[str, object]:
    """What PEFT would write of it."""
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
