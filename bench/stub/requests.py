"""What the stub reads of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash


class BadRequest(Exception):
    """The request cannot be served; the message says why."""


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool = False


class _Body(msgspec.Struct, gc=False):
    prompt: str | list[Any] | None = None
    messages: list[Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    cache_salt: str | None = None


@dataclass(frozen=True)
class Asked:
    """A completion's request. ``words`` are its prompt's; a token id counts as a word.

    Requests of different ``scope`` share no cached block.
    """

    chat: bool
    words: list[str]
    output_tokens: int
    stream: bool
    include_usage: bool
    scope: str

    def seed(self) -> int:
        """A number of its content."""
        return xxhash.xxh3_64_intdigest(f"{self.output_tokens} {' '.join(self.words)}".encode())


_decode = msgspec.json.Decoder(_Body).decode


def asked(body: bytes, chat: bool, key: str, output_tokens: int) -> Asked:
    """Read a body sent with an API ``key``; ``output_tokens`` are those of one that does not say.

    Raises BadRequest.
    """
    try:
        read = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"no completion's request: {error}") from None
    count = read.max_completion_tokens or read.max_tokens or output_tokens
    if count < 1:
        raise BadRequest(f"max_tokens is {count}")
    options = read.stream_options
    return Asked(
        chat=chat,
        words=_chat_words(read.messages) if chat else _prompt_words(read.prompt),
        output_tokens=count,
        stream=read.stream,
        include_usage=options is not None and options.include_usage,
        scope=f"{key}\n{read.cache_salt or ''}",
    )


def _prompt_words(prompt: str | list[Any] | None) -> list[str]:
    if prompt is None:
        raise BadRequest("no prompt")
    if isinstance(prompt, str):
        return prompt.split()
    if len(prompt) == 1 and isinstance(prompt[0], str | list):
        return _prompt_words(prompt[0])
    if not all(isinstance(token, int) for token in prompt):
        raise BadRequest("one prompt at a time")
    return [str(token) for token in prompt]


def _chat_words(messages: list[Any] | None) -> list[str]:
    if not messages:
        raise BadRequest("no messages")
    words: list[str] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                words += text.split()
    return words
