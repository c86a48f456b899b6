"""A text that is nowhere else in the world, and what it looks like wherever it may lie. Pure."""

from __future__ import annotations

import base64
import secrets
import struct
from collections.abc import Sequence
from typing import NamedTuple

MARKER_BYTES = 16
TIMES = 8
"""How often a canary's text has its marker, so that its tokens repeat as well."""

TOKENS = 16
"""Of a run of token ids: of hex digits that is 64 random bits at least."""

FIRST_TOKEN = 8
"""Of a prompt, at which the run begins: what stands before the text is over by then."""

KV_BYTES = 64


class Form(NamedTuple):
    """A way in which a canary may be written down, and what it then looks like."""

    name: str
    pattern: bytes


def new_marker() -> str:
    """128 random bits in hex, which is the same in UTF-8, Latin-1, URLs, and escaped in JSON."""
    return secrets.token_hex(MARKER_BYTES)


def text_of(marker: str) -> str:
    """The text that is sent."""
    return " ".join([marker] * TIMES)


def text_forms(marker: str) -> list[Form]:
    """The text, however it is encoded; base64 wherever in its groups of three bytes it begins."""
    plain = marker.encode()
    return [
        Form("text (UTF-8, JSON)", plain),
        Form("text (upper case)", marker.upper().encode()),
        Form("text (UTF-16 LE)", marker.encode("utf-16-le")),
        Form("text (UTF-16 BE)", marker.encode("utf-16-be")),
        *(Form(f"text (base64, {at})", _base64(plain, at)) for at in range(3)),
        Form("text (hex)", plain.hex().encode()),
    ]


def _base64(plain: bytes, before: int) -> bytes:
    """What is the same of its base64 whatever stands around it, with so many bytes before."""
    encoded = base64.b64encode(bytes(before) + plain)
    return encoded[-(-before * 8 // 6) : (before + len(plain)) * 8 // 6]


def token_forms(tokens: Sequence[int]) -> list[Form]:
    """A run of token ids, as arrays and as numbers in a text."""
    count = len(tokens)
    written = [str(token) for token in tokens]
    return [
        Form("tokens (int32)", struct.pack(f"<{count}i", *tokens)),
        Form("tokens (int64)", struct.pack(f"<{count}q", *tokens)),
        Form("tokens (text)", ", ".join(written).encode()),
        Form("tokens (compact text)", ",".join(written).encode()),
    ]


def kv_forms(runs: Sequence[bytes]) -> list[Form]:
    """Bytes of its KV."""
    return [Form("KV", run) for run in runs]


def control_forms() -> list[Form]:
    """All forms of a canary that is never sent; the audit plants it to be found."""
    tokens = [secrets.randbelow(1 << 16) for _ in range(TOKENS)]
    kv = [secrets.token_bytes(KV_BYTES)]
    forms = [*text_forms(new_marker()), *token_forms(tokens), *kv_forms(kv)]
    return [Form(f"control: {form.name}", form.pattern) for form in forms]


def planted(forms: Sequence[Form]) -> bytes:
    """A file's content with every form in it once, between other bytes."""
    return b"".join(secrets.token_bytes(100) + form.pattern for form in forms) + bytes(1)
