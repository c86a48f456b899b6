"""What messages are made of: text, or media that the client sent along. Pure.

A list of what is allowed, by kind and by key. Nothing that a worker would have to fetch passes,
whatever it is wrapped in: where a part has a URL, the URL holds the data itself. Nor does a part's
``uuid``, by which vLLM would take another client's media for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from kvstore.errors import ApiError

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

TEXT_KINDS = frozenset(
    {"text", "input_text", "output_text", "refusal", "thinking", "tool_reference"}
)
MEDIA_KINDS = frozenset({"audio_url", "image_url", "input_audio", "input_image", "video_url"})
REFUSED_KINDS = frozenset(
    {"audio_embeds", "image_embeds", "image_pil", "prompt_embeds", "video_embeds"}
)
"""Tensors, which a worker would have to take apart."""

URLS = frozenset({"audio_url", "image_url", "video_url"})
KEPT_KEYS = frozenset(
    {"closed", "detail", "input_audio", "name", "refusal", "text", "thinking", "type", *URLS}
)
DROPPED_KEYS = frozenset({"cache_control", "uuid"})
"""A cache's key and, of other APIs, its lifetime. Other keys that are not kept go as well."""

_MEDIA_KEYS = frozenset({"input_audio", *URLS})
_TEXT_KEYS = KEPT_KEYS - _MEDIA_KEYS
_KINDS = TEXT_KINDS | MEDIA_KINDS


def check(messages: object) -> bool:
    """Whether ``messages`` hold anything but text. Takes from their parts what workers must not
    see. Raises ApiError (400) saying what is wrong.
    """
    # vLLM hands any role to the chat template, and most templates render it.
    if not isinstance(messages, list):
        raise _bad("'messages' must be an array of messages.", "messages")
    if not messages:
        raise _bad("'messages' must hold at least one message.", "messages")
    media = False
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _bad(f"{param} must be an object.", param)
        _check_role(message.get("role"), param)
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise _bad(f"{param}.tool_calls must be an array.", f"{param}.tool_calls")
        content = message.get("content")
        if isinstance(content, list):
            media = _check_content(content, f"{param}.content") or media
        elif content is not None and not isinstance(content, str):
            raise _bad(f"{param}.content must be text or an array of parts.", f"{param}.content")
    return media


def named(messages: Sequence[dict[str, Any]], salt: str) -> list[dict[str, Any]]:
    """``messages``, every medium in them with a name that it has under ``salt`` alone.

    vLLM keeps what it made of media by name, or by content, whoever sent them: how fast one is
    answered would tell whether another tenant has sent the same.
    """
    return [
        {**message, "content": [_named(part, salt) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _named(part: Any, salt: str) -> Any:  # noqa: ANN401 (a part is text or an object)
    if not isinstance(part, dict) or part.get("type") in TEXT_KINDS or _is_text(part):
        return part
    return {**part, "uuid": sha256(salt.encode() + msgspec.json.encode(part)).hexdigest()}


def _check_role(role: object, param: str) -> None:
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        shown = repr(role[:64]) if isinstance(role, str) else "no role"
        raise _bad(f"{param} has an unknown role: {shown}. Known: {known}.", f"{param}.role")


def _check_content(content: list[Any], param: str) -> bool:
    media = False
    for index, part in enumerate(content):
        if isinstance(part, str) or _is_plain(part):
            continue
        within = f"{param}[{index}]"
        if not isinstance(part, dict):
            raise _bad(f"{within} must be text or an object.", within)
        content[index] = _checked(part, within)
        media = not _is_text(content[index]) or media
    return media


def _checked(part: dict[str, Any], param: str) -> dict[str, Any]:
    """What a worker may see of ``part``."""
    kind = part.get("type")
    known = kind in _KINDS if isinstance(kind, str) else kind is None
    if not known:
        raise _bad(f"{param} is of a type that is not served here.", f"{param}.type")
    if refused := part.keys() & REFUSED_KINDS:
        raise _bad(f"'{min(refused)}' is not accepted in {param}.", f"{param}.{min(refused)}")
    kept = {key: value for key, value in part.items() if key in KEPT_KEYS}
    for key in kept.keys() & URLS:
        _check_url(kept[key], f"{param}.{key}")
    audio = kept.get("input_audio")
    if audio is not None and not (
        isinstance(audio, dict) and all(isinstance(value, str) for value in audio.values())
    ):
        raise _bad(f"{param}.input_audio must hold data and a format.", f"{param}.input_audio")
    return kept


def is_data(url: str) -> bool:
    """Whether ``url`` holds its data, in the one form that vLLM reads."""
    head, comma, _ = url.partition(",")
    return bool(comma) and head[:5].lower() == "data:" and head.endswith(";base64")


def _check_url(given: object, param: str) -> None:
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not is_data(url):
        raise _bad(
            f"{param} must be a URL that holds the data ('data:…;base64,…'). Nothing is fetched.",
            param,
        )


def _is_plain(part: object) -> bool:
    """Whether nothing of ``part`` has to be looked into, as of most."""
    if not isinstance(part, dict) or not part.keys() <= _TEXT_KEYS:
        return False
    kind = part.get("type")
    return isinstance(kind, str) and kind in TEXT_KINDS


def _is_text(part: dict[str, Any]) -> bool:
    # A part may also be media by the mere presence of a key such as "image_url".
    return part.get("type", "text") in TEXT_KINDS and not part.keys() & _MEDIA_KEYS


def _bad(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param)
