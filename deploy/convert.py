"""``python -m deploy.convert GGUF FOLDER``: a GGUF file as a Hugging Face checkpoint in bfloat16.

A process of its own, because it needs torch and a few hundred MB that nobody else should keep.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig


def convert(source: Path, folder: Path) -> None:
    """Writes weights, configuration and tokenizer of ``source`` into ``folder``."""
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
