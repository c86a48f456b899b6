"""What a worker tells of how it turns text into tokens: ``GET`` of ``TEXT_RULES_PATH``, as JSON.

::

    {"tokenizer": {…},                        what tokenizer.json holds
     "variables": {"bos_token": "<s>", …},    what a chat template knows beside the messages
     "chat_template": "{% for message in …"}  or null

Both roles answer it (:mod:`kvstore.gate`), from what their engine has loaded, not from files: 404
where the engine's tokenizer is not one of the ``tokenizers`` library.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from kvstore.errors import WireError

TEXT_RULES_PATH = "/kvferry/tokenizer"

MAX_TEXT_RULES_BYTES = 64 << 20
"""Of a whole answer; the largest known, with a vocabulary of 262,144, has 12 MiB."""

MAX_TEMPLATE_CHARS = 1 << 20

Variables = Annotated[dict[str, Any], msgspec.Meta(max_length=64)]
ChatTemplate = Annotated[str, msgspec.Meta(max_length=MAX_TEMPLATE_CHARS)]


class TextRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer. ``chat_template`` is None where a chat's text is not made by a template alone."""

    tokenizer: msgspec.Raw
    variables: Variables
    chat_template: ChatTemplate | None


def text_rules(raw: bytes) -> TextRules:
    """The answer in ``raw``. Raises WireError."""
    try:
        return msgspec.json.decode(raw, type=TextRules)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"malformed text rules: {type(error).__name__}") from None
