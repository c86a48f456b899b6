"""How numbers and foreign text are written, the same in a page and in a terminal."""

from __future__ import annotations

import math
import unicodedata

DASH = "–"


def tell(value: float | str | None) -> str:
    """A cell's text: three significant digits at least, whole numbers in full, None as a dash."""
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return _tell_float(value)


def _tell_float(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e9 or size < 1e-4:
        return f"{value:.3g}"
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.0995 else f"{value:.2g}"


def clean(text: str) -> str:
    """The text without what XML forbids or a terminal would obey; spaces stand for new lines.

    Names and messages come from servers: an escape sequence in one must do nothing.
    """
    return "".join(_clean_character(character) for character in text)


def _clean_character(character: str) -> str:
    if character in "\t\n\r":
        return " "
    # Controls, lone surrogates, what turns the direction of text, and noncharacters.
    if unicodedata.category(character) in ("Cc", "Cs") or character in _TURNS:
        return "\N{REPLACEMENT CHARACTER}"
    return "\N{REPLACEMENT CHARACTER}" if ord(character) & 0xFFFE == 0xFFFE else character


_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
