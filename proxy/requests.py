"""What a client asked for: parsed, checked, and stripped of what could steer cache or transport.

Everything else in a body is the decode worker's business and reaches it untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kvstore.errors import ApiError, WireError
from proxy.wire import decoded

Route = Literal["chat", "completions"]

PATHS: dict[Route, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

DROPPED = frozenset(
    {
        "cache_salt",
        "ec_transfer_params",
        "kv_transfer_params",
        "priority",
        "prompt_cache_key",
        "request_id",
        "session_id",
        "vllm_xargs",
    }
)
"""Fields through which a client could reach another tenant's cache, a transfer or the queue, and
its hint, which is no worker's business.
"""

AFFINITY_HEADER = "x-session-affinity"

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})

_MEDIA_KEYS = ("image", "audio", "video", "input_", "prompt_embeds")

_MAX_NAME = 256


@dataclass(frozen=True)
class ClientRequest:
    """One request as the workers may see it.

    ``alone`` says why the decode worker has to serve it by itself, None if it need not.
    ``wants_usage``: a streaming client asked for the usage chunk. ``hint``: requests with the same
    one are likely to have much in common.
    """

    route: Route
    body: dict[str, Any]
    model: str | None
    stream: bool
    wants_usage: bool
    alone: str | None
    hint: str | None = None


def parse(route: Route, raw: bytes, affinity: str | None = None) -> ClientRequest:
    """The request in ``raw`` (JSON). ``affinity``: that header's value, which counts where the body
    has no hint. Raises ApiError (400) saying what is wrong with it.
    """
    body = _object(raw)
    hint = _hint(body.get("prompt_cache_key"), "prompt_cache_key") or _hint(
        affinity, AFFINITY_HEADER
    )
    for field in DROPPED:
        body.pop(field, None)
    model = body.get("model")
    if model is not None and (not isinstance(model, str) or len(model) > _MAX_NAME):
        raise _bad("'model' must be a string.", "model")
    stream = _flag(body, "stream", "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _bad("'stream_options' must be an object.", "stream_options")
    wants_usage = options is not None and _flag(
        options, "include_usage", "stream_options.include_usage"
    )
    if route == "chat":
        _check_messages(body.get("messages"))
    return ClientRequest(route, body, model, stream, wants_usage, _alone(route, body), hint)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = decoded(raw)
    except WireError as error:
        raise _bad(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise _bad("The body must be a JSON object.")
    return body


def _flag(fields: dict[str, Any], name: str, param: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _bad(f"'{param}' must be true or false.", param)


def _hint(told: object, param: str) -> str | None:
    """None where there is none. Its characters need not be valid Unicode: JSON's need not."""
    if told is not None and (not isinstance(told, str) or len(told) > _MAX_NAME):
        raise _bad(f"'{param}' must be a string of at most {_MAX_NAME} characters.", param)
    return told or None


def _check_messages(messages: object) -> None:
    # vLLM hands any role to the chat template, and most templates render it.
    if not isinstance(messages, list):
        raise _bad("'messages' must be an array of messages.", "messages")
    if not messages:
        raise _bad("'messages' must hold at least one message.", "messages")
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _bad(f"{param} must be an object.", param)
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            known = ", ".join(sorted(ROLES))
            shown = repr(role[:64]) if isinstance(role, str) else "no role"
            raise _bad(f"{param} has an unknown role: {shown}. Known: {known}.", f"{param}.role")


def _alone(route: Route, body: dict[str, Any]) -> str | None:
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        return "n"
    if body.get("use_beam_search"):
        return "beam-search"
    if body.get("prompt_logprobs") is not None:
        return "prompt-logprobs"
    if body.get("echo"):
        return "echo"
    if body.get("return_prompt_text"):
        return "prompt-text"
    if route == "chat":
        return "non-text" if _has_media(body["messages"]) else None
    if body.get("prompt_embeds") is not None:
        return "prompt-embeds"
    return "multi-prompt" if _prompts(body.get("prompt")) > 1 else None


def _has_media(messages: list[dict[str, Any]]) -> bool:
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and not _is_text(part):
                return True
    return False


def _is_text(part: dict[str, Any]) -> bool:
    # A part may also be media by the mere presence of a key such as "image_url".
    kind = part.get("type", "text")
    media = any(key.startswith(_MEDIA_KEYS) for key in part)
    return isinstance(kind, str) and kind in _TEXT_PARTS and not media


def _prompts(prompt: object) -> int:
    """How many prompts a completion's ``prompt`` holds: text, tokens, or a list of either."""
    if isinstance(prompt, list) and any(isinstance(item, str | list) for item in prompt):
        return len(prompt)
    return 1


def _bad(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param)
