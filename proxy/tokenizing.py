"""Text into tokens, as the engine's tokenizer does, and where a text may be cut before that.

A text cut into pieces has the tokens of the whole, one piece's after the other's, if every cut is
where no token can span it whatever surrounds it. ``cuts`` knows such places from the two characters
at a cut alone, for tokenizers it recognizes; any other tokenizer's texts stay whole. Since a cut
depends on nothing else, texts that begin alike are cut alike as far as they agree.

**Why.** The ``tokenizers`` library (1) takes added tokens (``<|im_end|>``) out of the text, the
longest of the leftmost first, (2) normalizes what lies between them, (3) splits that into words and
(4) merges each word's bytes or characters by itself. Let x and y be the characters before and after
a cut, and let x be a letter or digit of ``_BEFORE`` and y one of ``_AFTER``:

1. No added token has an x followed by a y in it, so none spans a cut, and the search for them goes
   on after a cut as it begins there. None may reach for the blanks around it or ask for what stands
   beside it (``lstrip``, ``rstrip``, ``single_word``).
2. Without a normalizer there is nothing to show. NFC composes no y with what precedes it, and makes
   a text that ends in x one that ends in x. Gemma's normalizer replaces each space by ``▁``.
3. The patterns of ``_WORDS`` are alternatives that, from wherever the last word ended, take one
   word each and look at nothing before it. In none of them can an x be followed by a y. So no word
   spans the cut, and no attempt at one learns more beyond x than that there is no letter, digit,
   mark or apostrophe, which the end of a text tells as well: the words before a cut are the same
   with y and without. Digits that are split off first (``Digits``) are words by themselves. Every x
   is a letter or digit since the first versions of Unicode, so it is in anyone's tables.
4. Gemma's words are whole texts between added tokens. So y is only the space there, now ``▁``, and
   it is looked whether any merge joins a token that begins with ``▁`` to one that ends in an x, or
   to one of those that stand for what is not in the vocabulary (``<0xE4>``, ``<unk>``). Where none
   does, no merge crosses the cut, and those on either side of it know nothing of each other. ``▁``
   is in the vocabulary, so it is not fused with something unknown before it.

Merges must not be left out at random (``dropout``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from kvstore.errors import WireError
from proxy.wire import decoded

PIECE_CHARS = 512
"""A piece is cut at the first place after so many characters."""

_BEFORE = "0-9A-Za-zÀ-ÖØ-öø-ȟΑ-ΡΣ-Ωα-ωА-яא-תぁ-ゔァ-ヺ一-龥가-힣"
_AFTER = " \t\n\r.,;:!?()=。，、"

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_GPT_2 = {**_BYTE_LEVEL, "use_regex": True}

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LATER = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3, _QWEN_2 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LATER}"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LATER}"
)


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_WORDS: tuple[list[dict[str, Any]], ...] = (
    [_GPT_2],
    [{"type": "Digits", "individual_digits": True}, _GPT_2],
    *([_split(pattern), _BYTE_LEVEL] for pattern in (_LLAMA_3, _QWEN_2, _O200K)),
)
"""How byte-level tokenizers split words: GPT-2's and SmolLM's, Llama 3's, Qwen 2's, GPT-OSS's."""

_GEMMA_WORDS = [
    {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
]
_SPACE = "▁"
_GEMMA_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


class _AddedToken(msgspec.Struct):
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool


class _Model(msgspec.Struct):
    type: str
    dropout: float | None = None
    ignore_merges: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _Space(msgspec.Struct, rename={"token": _SPACE}):
    token: int | None = None


class _Merges(msgspec.Struct):
    vocab: _Space
    merges: list[tuple[str, str]]


class _Described(msgspec.Struct):
    """What matters here of a tokenizer's JSON."""

    added_tokens: list[_AddedToken]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    post_processor: dict[str, Any] | None
    model: msgspec.Raw


def cuts(described: _Described) -> re.Pattern[str] | None:
    """Finds (empty matches) where texts may be cut; None where only whole texts are safe."""
    model = decoded(bytes(described.model), _Model)
    words, after = _words(described.pre_tokenizer), _AFTER
    if model.type != "BPE" or model.dropout:
        return None
    if words == _GEMMA_WORDS and described.normalizer == _GEMMA_NORMALIZER:
        if not _spaces_begin_tokens(model, described.model):
            return None
        after = " "
    elif words not in _WORDS or described.normalizer not in (None, {"type": "NFC"}):
        return None
    found = re.compile(f"(?<=[{_BEFORE}])(?=[{after}])")
    return None if any(_hinders(found, token) for token in described.added_tokens) else found


def _words(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without what only places tokens in the text."""
    if pre_tokenizer is None:
        return []
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    known = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    return [
        {"use_regex": True, **step} if step.get("type") == "ByteLevel" else step for step in known
    ]


def _hinders(found: re.Pattern[str], token: _AddedToken) -> bool:
    content = unicodedata.normalize("NFC", token.content).replace(_SPACE, " ")
    inside = found.search(content) or found.search(token.content)
    return bool(inside) or token.single_word or token.lstrip or token.rstrip


def _spaces_begin_tokens(model: _Model, raw: msgspec.Raw) -> bool:
    if model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    try:
        table = decoded(bytes(raw), _Merges)
    except WireError:
        return False
    ends_in_x = re.compile(f"[{_BEFORE}]\\Z|<.+>\\Z")
    return table.vocab.token is not None and not any(
        right[0] == _SPACE and ends_in_x.search(left) for left, right in table.merges
    )


class TextTokenizer:
    """An engine's tokenizer. Tokens are packed: 32-bit integers, one after the other.

    ``limit``: every token is below it. ``around``: what a completion's text gets before and after
    it, packed; None where that is not told in a form known here.
    """

    def __init__(self, raw: bytes) -> None:
        """Loads ``raw`` (tokenizer.json): seconds for the largest. Raises WireError."""
        described = decoded(raw, _Described)
        self._cuts = cuts(described)
        self.around = _around(described.post_processor)
        plain = ("truncation", "padding", "post_processor", "decoder")
        fields = {**decoded(raw, dict[str, msgspec.Raw]), **dict.fromkeys(plain, _NULL)}
        try:
            self._tokenizer = Tokenizer.from_buffer(msgspec.json.encode(fields))
        except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
            raise WireError(f"not a tokenizer: {type(error).__name__}") from None
        self.limit: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def pieces(self, text: str) -> list[str]:
        """``text`` in pieces whose tokens, joined, are its tokens. All but the last are complete:

        a text that begins with the same pieces has the same tokens there.
        """
        bounds = [0, *self._bounds(text), len(text)]
        return [text[start:end] for start, end in pairwise(bounds)]

    def _bounds(self, text: str) -> Iterator[int]:
        at = 0
        while self._cuts and (found := self._cuts.search(text, at + PIECE_CHARS)):
            at = found.start()
            yield at

    def encode(self, pieces: Sequence[str]) -> list[bytes]:
        """The packed tokens of each of ``pieces``. Frees other threads meanwhile."""
        encoded = self._tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
        return [pack(piece.ids) for piece in encoded]


def pack(tokens: Sequence[int]) -> bytes:
    """``tokens`` in four bytes each."""
    return np.array(tokens, dtype=np.int32).tobytes()


def unpack(packed: Sequence[bytes]) -> list[int]:
    """All of ``packed``, one after the other."""
    tokens: list[int] = np.frombuffer(b"".join(packed), dtype=np.int32).tolist()
    return tokens


_NULL = msgspec.Raw(b"null")


class _Named(msgspec.Struct):
    ids: list[int]


class _Template(msgspec.Struct, tag_field="type", tag="TemplateProcessing"):
    """A post-processor that puts tokens around a text."""

    single: list[dict[str, dict[str, Any]]]
    special_tokens: dict[str, _Named]


def _around(post_processor: dict[str, Any] | None) -> tuple[bytes, bytes] | None:
    steps = [] if post_processor is None else post_processor.get("processors", [post_processor])
    kinds = [step for step in steps if step.get("type") != "ByteLevel"]  # it only places tokens
    if not kinds:
        return b"", b""
    try:
        template = msgspec.convert(kinds[0], _Template)
        sides: list[list[int]] = [[], []]
        side = 0
        for item in template.single:
            if "Sequence" in item:
                side += 1
            else:
                sides[side] += template.special_tokens[item["SpecialToken"]["id"]].ids
    except (msgspec.ValidationError, KeyError, IndexError):
        return None
    return (pack(sides[0]), pack(sides[1])) if len(kinds) == 1 and side == 1 else None
