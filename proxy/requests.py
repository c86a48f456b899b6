"""What a client asked for: parsed, checked, and stripped of what is not its to decide.

What is left of a body (``proxy.fields``) is the decode worker's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from kvstore.errors import ApiError, WireError
from proxy import fields, parts
from proxy.wire import decoded

Route = Literal["chat", "completions"]

PATHS: dict[Route, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

AFFINITY_HEADER = "x-session-affinity"
ISOLATION_HEADER = "x-prompt-cache-isolation-key"

MOST_SEQUENCES = 1024
"""Answers that one request may have generated: prompts times answers to each."""

_MAX_NAME = 256
_FATES = {"chat": fields.CHAT, "completions": fields.COMPLETIONS}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Asides:
    """What a client says beside the body: the values of headers, None where it sent none.

    ``affinity`` and ``isolation`` count where the body has no ``prompt_cache_key`` and no
    ``prompt_cache_isolation_key``.
    """

    affinity: str | None = None
    isolation: str | None = None
    cache_control: str | None = None


NOTHING_ASIDE = Asides()


@dataclass(frozen=True)
class ClientRequest:
    """One request as the workers may see it.

    ``alone`` says why the decode worker has to serve it by itself, None if it need not.
    ``wants_usage``: a streaming client asked for the usage chunk. ``hint``: requests with the same
    one are likely to have much in common. ``sub_scope``: only requests of its tenant with the same
    one share KV with it. ``kept``: something of it may be kept when it is over. ``media``: its
    messages hold more than text.
    """

    route: Route
    body: dict[str, Any]
    model: str | None
    stream: bool
    wants_usage: bool
    alone: str | None
    hint: str | None = None
    sub_scope: str = ""
    kept: bool = True
    media: bool = False


def parse(route: Route, raw: bytes, asides: Asides = NOTHING_ASIDE) -> ClientRequest:
    """The request in ``raw`` (JSON). Raises ApiError (400) saying what is wrong with it."""
    told = _object(raw)
    body = fields.admitted(told, _FATES[route])
    model = body.get("model")
    if model is not None and (not isinstance(model, str) or len(model) > _MAX_NAME):
        raise _bad("'model' must be a string.", "model")
    stream = _flag(body, "stream", "stream")
    prompts = _prompts(body.get("prompt"))
    if prompts * (body.get("n") or 1) > MOST_SEQUENCES:
        raise _bad(f"'n' times the prompts must be at most {MOST_SEQUENCES}.", "n")
    media = route == "chat" and parts.check(body.get("messages"))
    return ClientRequest(
        route=route,
        body=body,
        model=model,
        stream=stream,
        wants_usage=_wants_usage(body),
        alone=_alone(body) or _shape(prompts, media=media),
        hint=_hint(told.get("prompt_cache_key"), asides.affinity),
        sub_scope=_sub_scope(told.get("prompt_cache_isolation_key"), asides.isolation),
        kept=not (_flag(told, "no_store", "no_store") or _no_store(asides.cache_control)),
        media=media,
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = decoded(raw)
    except WireError as error:
        raise _bad(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise _bad("The body must be a JSON object.")
    return body


def _flag(told: dict[str, Any], name: str, param: str) -> bool:
    value = told.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _bad(f"'{param}' must be true or false.", param)


def _wants_usage(body: dict[str, Any]) -> bool:
    """Leaves of the stream's options what is known."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _bad("'stream_options' must be an object.", "stream_options")
    options = fields.admitted(options, fields.STREAM_OPTIONS, "stream_options.")
    body["stream_options"] = options
    for name in options:
        _flag(options, name, f"stream_options.{name}")
    return bool(options.get("include_usage"))


def _hint(told: object, affinity: str | None) -> str | None:
    """None where there is none."""
    return _name(told, "prompt_cache_key") or _name(affinity, AFFINITY_HEADER) or None


def _sub_scope(told: object, aside: str | None) -> str:
    """ "" where there is none. An empty one is refused: it would not do what it seems to."""
    param = "prompt_cache_isolation_key"
    if told is None:
        told, param = aside, ISOLATION_HEADER
    if told == "":
        raise _bad(f"'{param}' must not be empty.", param)
    return _name(told, param)


def _name(told: object, param: str) -> str:
    if told is not None and (not isinstance(told, str) or len(told) > _MAX_NAME):
        raise _bad(f"'{param}' must be a string of at most {_MAX_NAME} characters.", param)
    return told or ""


def _no_store(cache_control: str | None) -> bool:
    """Whether that header's directives have it: their names stand before "=", outside quotes."""
    directives = _QUOTED.sub("", cache_control or "").split(",")
    return any(one.partition("=")[0].strip().lower() == "no-store" for one in directives)


def _alone(body: dict[str, Any]) -> str | None:
    if body.get("use_beam_search"):
        return "beam-search"
    if body.get("n") not in (None, 1):
        return "n"
    if body.get("prompt_logprobs") is not None:
        return "prompt-logprobs"
    if body.get("echo"):
        return "echo"
    return "prompt-text" if body.get("return_prompt_text") else None


def _shape(prompts: int, *, media: bool) -> str | None:
    if media:
        return "non-text"
    return "multi-prompt" if prompts > 1 else None


def _prompts(prompt: object) -> int:
    """How many prompts a completion's ``prompt`` holds: text, tokens, or a list of either."""
    # Of a mixture, which vLLM refuses, the first tells as well.
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1


def _bad(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param)
