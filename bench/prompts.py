"""Prompts of an exact number of tokens, made of real English.

The text is the Python manual's, as the standard library carries it: prose, tables and code. Every
prompt begins with a random number of its own, so its first block, and with it the whole chain of
blocks, is new to every cache; two runs never share a prompt unless they share a seed.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

_ATTEMPTS = 64


@dataclass(frozen=True)
class Prompt:
    """A text and the number of tokens the model's tokenizer makes of it."""

    text: str
    tokens: int


class PromptSource(Protocol):
    """Makes prompts of an exact length."""

    def make(self, tokens: int, source: random.Random) -> Prompt:
        """A prompt of exactly ``tokens`` tokens. Raises ValueError if none could be found."""


class Prompts:
    """Makes prompts for one model. Stateless apart from the text; randomness is the caller's."""

    def __init__(self, tokenizer: Path) -> None:
        """``tokenizer``: the model's ``tokenizer.json``. Raises OSError if it is not there."""
        self._tokenizer = Tokenizer.from_str(tokenizer.read_text(encoding="utf-8"))

    @cached_property
    def _ids(self) -> list[int]:
        text = "\n".join(pydoc_data.topics.topics.values())
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def count(self, text: str) -> int:
        """How many tokens a server will make of ``text``."""
        return len(self._tokenizer.encode(text).ids)

    def make(self, tokens: int, source: random.Random) -> Prompt:
        """A prompt of exactly ``tokens`` tokens. Raises ValueError if none could be found."""
        for _ in range(_ATTEMPTS):
            text = self._text(tokens, source)
            if self.count(text) == tokens:
                return Prompt(text, tokens)
        raise ValueError(f"found no text of exactly {tokens} tokens")

    def _text(self, tokens: int, source: random.Random) -> str:
        """A text of about ``tokens`` tokens: cutting between tokens may join or split some."""
        label = f"{source.randrange(10**12):012d}: "
        head: list[int] = self._tokenizer.encode(label, add_special_tokens=False).ids
        if tokens <= len(head):
            start = source.randrange(len(self._ids) - tokens)
            return str(self._tokenizer.decode(self._ids[start : start + tokens]))
        body = tokens - len(head)
        start = source.randrange(len(self._ids) - body)
        return label + str(self._tokenizer.decode(self._ids[start : start + body]))


def spread_lengths(shortest: int, longest: int, count: int) -> list[int]:
    """``count`` lengths from ``shortest`` to ``longest``, both included, evenly spread in ratio.

    Short prompts, where a prompt ends inside its first blocks, are as well covered as long ones.
    """
    if count < 2 or not 0 < shortest <= longest:
        raise ValueError("lengths spread from a shortest to a longest, two at least")
    step = math.log(longest / shortest) / (count - 1)
    inner = [round(shortest * math.exp(step * index)) for index in range(1, count - 1)]
    return [shortest, *inner, longest]
