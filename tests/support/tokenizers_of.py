"""Small tokenizers of the families that are served, trained on the spot."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

from proxy.tokenizing import _LLAMA_3, _O200K, _QWEN_2

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|a|>", "<bos>")
"""Of all of them."""

PLAIN = ("\n\n", "\n\n\n", "[added]")
"""Added, but not special, as in Gemma's."""

CORPUS = [
    "It's what they'd said: we'll meet at 12:30, near the café (if it isn't raining).\n",
    "def f(x):\n\tif x == 0:  # none\n\t\treturn {'a': [1, 2]}\n\n\n    return x**2\r\n",
    "Größe, naïveté; СПАСИБО, мы не опоздаем. 一二三，四五六。テスト、ガギグ! 가나다.  ..   --\n\n",
    "WE'LL SHOUT THE'RE  Ǆ ªº ½ ²³ 1234567 3.14 a.b.c d,e;f:g!h?i(j)k=l  m\u3000n\u00a0o ",
] * 3

SPLITS = {"llama-3": _LLAMA_3, "qwen-2": _QWEN_2, "gpt-oss": _O200K}
FAMILIES = ("gpt-2", "digits", *SPLITS, "gemma")


@cache
def described(family: str) -> bytes:
    """``tokenizer.json`` of a small tokenizer of ``family``."""
    return _gemma() if family == "gemma" else _byte_level(family)


@cache
def whole(family: str) -> Tokenizer:
    """The same, as the library loads it."""
    return Tokenizer.from_buffer(described(family))


def changed(family: str, **fields: Any) -> bytes:
    """The same, with other fields."""
    return json.dumps({**json.loads(described(family)), **fields}).encode()


def _byte_level(family: str) -> bytes:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = {
        "gpt-2": ByteLevel(add_prefix_space=False),
        "digits": pre_tokenizers.Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        ),
        **{
            name: pre_tokenizers.Sequence(
                [
                    Split(Regex(pattern), "isolated"),
                    ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            for name, pattern in SPLITS.items()
        },
    }[family]
    if family == "qwen-2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_plain(tokenizer)


def _gemma() -> bytes:
    # Trained word by word, as SentencePiece does, so that no token goes on after a space.
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = Split(Regex("▁+[^▁]*"), "isolated")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<unk>", *SPECIAL, *byte_tokens],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 2 for text in CORPUS[:9]], trainer)
    tokenizer.pre_tokenizer = Split(" ", "merged_with_previous")
    fields = json.loads(_with_plain(tokenizer))
    fields["added_tokens"] = [
        token for token in fields["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return json.dumps(fields).encode()


def _with_plain(tokenizer: Tokenizer) -> bytes:
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content in PLAIN])
    return tokenizer.to_str().encode()
