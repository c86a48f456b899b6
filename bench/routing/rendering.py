"""A prompt's tokens, by the model's own template and tokenizer, as vLLM's render endpoints tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import msgspec
from tokenizers import Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Of a model's folder, that are read."""


class _Chat(msgspec.Struct):
    messages: list[dict[str, Any]]


class _Completion(msgspec.Struct):
    prompt: str | list[int]


class Renderer:
    """For one model. ``rules``: what kvferry's workers tell of how they make tokens of text."""

    def __init__(self, model: Path) -> None:
        """``model``: its folder. Raises OSError if one of ``FILES`` is not there."""
        described, config, source = ((model / name).read_text("utf-8") for name in FILES)
        self._tokenizer = Tokenizer.from_str(described)
        self._variables = {
            name: value
            for name, value in msgspec.json.decode(config).items()
            if name.endswith("_token") and isinstance(value, str)
        }
        # Prompts, not pages: nothing is to be escaped.
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701
        self._template = environment.from_string(source)
        self.rules = msgspec.json.encode(
            {
                "tokenizer": msgspec.Raw(self._tokenizer.to_str().encode()),
                "variables": self._variables,
                "chat_template": source,
            }
        )

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """Of ``text``; ``special``: with those that a tokenizer puts around it."""
        # The faster of the library's two ways: it leaves offsets out.
        found: list[Any] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = found[0].ids
        return ids

    def rendered(self, chat: bool, body: bytes) -> bytes:
        """vLLM's answer to a request's ``body``. Raises msgspec.ValidationError."""
        if chat:
            messages = msgspec.json.decode(body, type=_Chat).messages
            text = self._template.render(
                messages=messages, add_generation_prompt=True, **self._variables
            )
            return msgspec.json.encode({"token_ids": self.tokens(text)})
        prompt = msgspec.json.decode(body, type=_Completion).prompt
        ids = self.tokens(prompt, special=True) if isinstance(prompt, str) else prompt
        return msgspec.json.encode([{"token_ids": ids}])
