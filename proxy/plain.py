"""Requests whose prompt the proxy can make itself: those of which it knows every field.

A list of what is allowed, with the values that vLLM accepts. All else (tools, parts, template
arguments, truncation, fields nobody has heard of) is a worker's to render, or to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from proxy.requests import ClientRequest

MOST_CHARS = 4 << 20
MOST_MESSAGES = 4096
AROUND_CHARS = 64
"""What a template's work on a message counts for."""

_STRIPPED = "x-anthropic-billing-header"
"""A system message's first line beginning so is taken out by vLLM."""

_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Positive = Annotated[int, Meta(ge=1, le=1 << 32)]
_NotNegative = Annotated[int, Meta(ge=0, le=1 << 32)]
_Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Stop = Annotated[str, Meta(min_length=1)]
_Stops = Annotated[list[_Stop], Meta(max_length=4)]
_Tokens = Annotated[list[Annotated[int, Meta(ge=0, lt=1 << 31)]], Meta(min_length=1)]
_Text = Annotated[str, Meta(min_length=1, max_length=MOST_CHARS)]


class _StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Generation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields of both routes: they change what is generated, never the prompt."""

    model: str | None = None
    frequency_penalty: _Penalty | None = None
    ignore_eos: bool = False
    max_tokens: _Positive | None = None
    min_p: _Share | None = None
    min_tokens: _NotNegative = 0
    n: Literal[1] = 1
    presence_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    return_token_ids: bool | None = None
    seed: _Seed | None = None
    stop: _Stop | _Stops | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: _NotNegative | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class _Chat(_Generation, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: _Positive | None = None


class _Completion(_Generation, forbid_unknown_fields=True, kw_only=True):
    prompt: _Text | _Tokens


@dataclass(frozen=True)
class Plain:
    """A prompt as the client gave it: one of the three.

    ``room`` tokens must be left of the model's length for what was asked: ``most`` is the
    ``max_tokens`` asked for, 0 where none was.
    """

    messages: list[dict[str, str]] | None = None
    text: str | None = None
    tokens: list[int] | None = None
    room: int = 1
    most: int = 0

    def fits(self, tokens: int, max_model_len: int) -> bool:
        """Whether a model of that length takes a prompt of so many tokens and what it asks for."""
        return tokens + self.room <= max_model_len and self.most <= max_model_len

    @property
    def chars(self) -> int:
        """How long the text is that the client gave; messages count for what surrounds them."""
        if self.messages is not None:
            return sum(AROUND_CHARS + len(message["content"]) for message in self.messages)
        return len(self.text or "")


def plain(request: ClientRequest) -> Plain | None:
    """The prompt of ``request``; None where a worker has to render it."""
    kind: Any = _Chat if request.route == "chat" else _Completion
    try:
        fields: _Chat | _Completion = msgspec.convert(request.body, kind)
    except msgspec.ValidationError:
        return None
    if fields.stream_options is not None and not fields.stream:
        return None
    if isinstance(fields, _Completion):
        asked, most = fields.max_tokens or 16, fields.max_tokens or 0
        given: dict[str, Any] = (
            {"text": fields.prompt} if isinstance(fields.prompt, str) else {"tokens": fields.prompt}
        )
    else:
        most = max(fields.max_completion_tokens or 0, fields.max_tokens or 0)
        asked = fields.max_completion_tokens or fields.max_tokens or fields.min_tokens
        if any(m.role == "system" and m.content.startswith(_STRIPPED) for m in fields.messages):
            return None
        given = {"messages": request.body["messages"]}
    if fields.min_tokens > asked:
        return None
    return Plain(**given, room=max(1, fields.min_tokens), most=most)
