"""What messages are made of: text, or media that the client sent along. Pure.

A list of what is allowed, by kind and by key. Nothing that a worker would have to fetch passes,
whatever it is wrapped in: where a part has a URL, the URL holds the data itself. Nor does a part's
``uuid``, by which vLLM would take another client's media for it.
"""

from __future__ import annotations

from typing import Any

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
_DATA = "data:"


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


def _check_role(role: object, param: str) -> None:
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        shown = repr(role[:64]) if isinstance(role, str) else "no role"
        raise _bad(f"{param} has an unknown role: {shown}. Known: {known}.", f"{param}.role")


def _check_content(content: list[Any], param: str) -> bool:
    media = False
    for index, part in enumerate(content):
        within = f"{param}[{index}]"
        if isinstance(part, dict):
            content[index] = _checked(part, within)
            media = not _is_text(content[index]) or media
        elif not isinstance(part, str):
            raise _bad(f"{within} must be text or an object.", within)
    return media


def _checked(part: dict[str, Any], param: str) -> dict[str, Any]:
    """What a worker may see of ``part``."""
    kind = part.get("type")
    known = kind in TEXT_KINDS | MEDIA_KINDS if isinstance(kind, str) else kind is None
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


def _check_url(given: object, param: str) -> None:
    url = given.get("url") if isinstance(given, dict) else given
    # As vLLM tells data from what it fetches.
    if not isinstance(url, str) or url[: len(_DATA)].lower() != _DATA:
        raise _bad(f"{param} must be a data: URL. Nothing is fetched from elsewhere.", param)


def _is_text(part: dict[str, Any]) -> bool:
    # A part may also be media by the mere presence of a key such as "image_url".
    return part.get("type", "text") in TEXT_KINDS and not part.keys() & _MEDIA_KEYS


def _bad(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param)
