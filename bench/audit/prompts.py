"""Prompts that no cache has ever seen, as token ids: their length is exact with any tokenizer."""

from __future__ import annotations

import secrets

from bench.load.words import WORDS

LOWEST, VOCABULARY = 1000, 9000
"""Ids from the one up to the other are ordinary tokens of every model of use."""

_SOURCE = secrets.SystemRandom()


def fresh(tokens: int) -> list[int]:
    """So many random tokens; a block of sixteen of them comes twice in no number of runs."""
    return [_SOURCE.randrange(LOWEST, VOCABULARY) for _ in range(tokens)]


def extended(prefix: list[int], tokens: int) -> list[int]:
    """``prefix`` and so many fresh tokens."""
    return [*prefix, *fresh(tokens)]


def text(words: int) -> str:
    """So many random words."""
    return " ".join(_SOURCE.choices(WORDS, k=words))
