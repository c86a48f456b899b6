"""How much of a thing a client may ask for, where vLLM itself takes more than is good for it.

A bound looks at a field's value as JSON gives it and says what is wrong with it, or None. Types are
meant exactly: vLLM would also take "9" for 9, and a bound must not be passed by in quotes. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Bound = Callable[[Any], str | None]

INT32 = (1 << 31) - 1
INT64 = (1 << 63) - 1
MOST_NESTED = 72
"""vLLM takes 64 levels of a JSON schema, which itself lies some deep in a body."""
MOST_ANSWERS = 128
MOST_PROMPTS = 128
MOST_TOOLS = 128
MOST_GRAMMAR_BYTES = 64 << 10
"""Of what an answer has to be like."""
MOST_TOOLS_BYTES = 256 << 10
MOST_PATTERN = 512
"""Characters of a regular expression. To compile 4,500 took a vocabulary of 262,144 tokens 23 s,
and how long grows with the square.
"""
_MOST_CHOICES = 1024
_MOST_BIASES = 1024
_MOST_BIAS = 100
_MOST_STOPS, _MOST_STOP = 4, 1024
_MOST_ARGUMENTS = 64
_MOST_PATTERN_SIZE, _MOST_COUNT = 256, 1024
"""vLLM's scheduler looks at every length up to the first after each token, for all to wait."""

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")

_TEMPLATE_CALL = frozenset(
    {
        "chat_template",
        "conversation",
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)
"""Parameters of the call that applies a template, which arguments for the template would reach."""

STRUCTURED = frozenset(
    {
        "choice",
        "disable_additional_properties",
        "disable_any_whitespace",
        "grammar",
        "json",
        "json_object",
        "regex",
        "structural_tag",
        "whitespace_pattern",
    }
)


def unsound(value: object, nested: int = 0) -> str | None:
    """What no server on the way would survive: nested too deeply, or a number of no known size."""
    if isinstance(value, int):
        return None if -INT64 - 1 <= value <= INT64 else "holds a number of more than 64 bits"
    if not isinstance(value, list | dict):
        return None
    if nested == MOST_NESTED:
        return f"is nested more than {MOST_NESTED} levels deep"
    for inner in value.values() if isinstance(value, dict) else value:
        if type(inner) is not str and (wrong := unsound(inner, nested + 1)) is not None:
            return wrong
    return None


def integer(least: int, most: int) -> Bound:
    """A whole number from ``least`` to ``most``."""

    def bound(value: object) -> str | None:
        whole = type(value) is int or (isinstance(value, float) and value.is_integer())
        if whole and least <= value <= most:  # type: ignore[operator]
            return None
        return f"must be an integer from {least} to {most}"

    return bound


def number(least: float, most: float) -> Bound:
    """A number from ``least`` to ``most``."""

    def bound(value: object) -> str | None:
        if isinstance(value, int | float) and type(value) is not bool and least <= value <= most:
            return None
        return f"must be a number from {least} to {most}"

    return bound


def token_ids(most: int) -> Bound:
    """A list of at most so many tokens' numbers."""

    def bound(value: object) -> str | None:
        if isinstance(value, list) and len(value) <= most:
            return None
        return f"must be an array of at most {most} token ids"

    return bound


def texts(most: int, characters: int) -> Bound:
    """A list of at most so many strings of at most so many ``characters``."""

    def bound(value: object) -> str | None:
        if isinstance(value, list) and len(value) <= most and _all_texts(value, characters):
            return None
        return f"must be an array of at most {most} strings of at most {characters} characters"

    return bound


def _all_texts(values: list[Any], characters: int) -> bool:
    return all(isinstance(one, str) and len(one) <= characters for one in values)


def stops(value: object) -> str | None:
    """One text that ends an answer, or some."""
    return texts(_MOST_STOPS, _MOST_STOP)([value] if isinstance(value, str) else value)


def biases(value: object) -> str | None:
    """By token, what is added to its score."""
    if not isinstance(value, dict) or len(value) > _MOST_BIASES:
        return f"must be an object with at most {_MOST_BIASES} token ids"
    within = number(-_MOST_BIAS, _MOST_BIAS)
    if all(_TOKEN_ID.fullmatch(token) and within(bias) is None for token, bias in value.items()):
        return None
    return f"must map token ids to numbers from -{_MOST_BIAS} to {_MOST_BIAS}"


def repetition(value: object) -> str | None:
    """What counts as an answer that repeats itself."""
    if not isinstance(value, dict):
        return "must be an object"
    most = {
        "max_pattern_size": _MOST_PATTERN_SIZE,
        "min_pattern_size": _MOST_PATTERN_SIZE,
        "min_count": _MOST_COUNT,
    }
    for name, given in value.items():
        if name not in most:
            return f"has no field '{name[:64]}'"
        if (wrong := integer(0, most[name])(given)) is not None:
            return f"is wrong: '{name}' {wrong}"
    return None


def grammar(value: object) -> str | None:
    """What an answer has to be like, in any notation."""
    if not isinstance(value, dict):
        return "must be an object"
    if len(msgspec.json.encode(value)) > MOST_GRAMMAR_BYTES:
        return f"must be at most {MOST_GRAMMAR_BYTES} bytes"
    return _patterns(value)


def structured(value: object) -> str | None:
    """The same in vLLM's notations."""
    if (wrong := grammar(value)) is not None:
        return wrong
    assert isinstance(value, dict)
    if unknown := value.keys() - STRUCTURED:
        return f"has no field '{min(unknown)[:64]}'"
    if any(not _short(value.get(name)) for name in ("regex", "whitespace_pattern")):
        return _LONG_PATTERN
    choices = value.get("choice")
    if isinstance(choices, list) and len(choices) > _MOST_CHOICES:
        return f"must have at most {_MOST_CHOICES} choices"
    for name in ("json", "structural_tag"):
        if isinstance(text := value.get(name), str):
            return _patterns_of_text(text)
    return None


def tools(value: object) -> str | None:
    """What the model may call."""
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        return f"must be an array of at most {MOST_TOOLS} tools"
    if len(msgspec.json.encode(value)) > MOST_TOOLS_BYTES:
        return f"must be at most {MOST_TOOLS_BYTES} bytes"
    return _patterns(value)


def template_arguments(value: object) -> str | None:
    """What a chat template is told."""
    if not isinstance(value, dict) or len(value) > _MOST_ARGUMENTS:
        return f"must be an object with at most {_MOST_ARGUMENTS} fields"
    if reached := value.keys() & _TEMPLATE_CALL:
        return f"must not have '{min(reached)}'"
    return None


def prompts(value: object) -> str | None:
    """One prompt, or some."""
    if not isinstance(value, list) or len(value) <= MOST_PROMPTS or type(value[0]) is int:
        return None  # one in tokens, or a mixture, which vLLM refuses
    return f"must be at most {MOST_PROMPTS} prompts"


def _patterns(value: object) -> str | None:
    """Every regular expression within a JSON schema, which is nested no deeper than may be."""
    if isinstance(value, list):
        inner: Any = value
    elif isinstance(value, Mapping):
        keyed = value.get("patternProperties")
        if not _short(value.get("pattern")) or (
            isinstance(keyed, dict) and not all(map(_short, keyed))
        ):
            return _LONG_PATTERN
        inner = value.values()
    else:
        return None
    for one in inner:
        if (wrong := _patterns(one)) is not None:
            return wrong
    return None


def _patterns_of_text(text: str) -> str | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return "must hold valid JSON"
    return unsound(value) or _patterns(value)


def _short(pattern: object) -> bool:
    return not isinstance(pattern, str) or len(pattern) <= MOST_PATTERN


_LONG_PATTERN = f"must not have a pattern of more than {MOST_PATTERN} characters"
