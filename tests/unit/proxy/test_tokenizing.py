"""A text's pieces have the tokens of the whole, whatever the text, for every family served."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

from kvstore.errors import WireError
from proxy import tokenizing
from proxy.tokenizing import TextTokenizer, unpack
from tests.support.tokenizers_of import (
    CORPUS,
    FAMILIES,
    PLAIN,
    SPECIAL,
    changed,
    described,
    whole,
)

_EDGES = " \t\n\r.,;:!?()=。，、'’-_/|>▁\u00a0\u3000\u2003\u200b\u0301\u0338\u0085\u2028ſÉé1²½Ⅷ"

words = st.one_of(
    st.sampled_from([word for text in CORPUS for word in re.split(r"(\s+)", text)]),
    st.sampled_from(
        [*SPECIAL, *PLAIN, "'s", "'LL", "'re", "  ", "\n \n", "<|im_", "end|>", "[add"]
    ),
    st.text(st.sampled_from(_EDGES + "abzAZ09àȟΩяתぁヺ一龥가힣"), max_size=6),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
)
texts = st.lists(words, max_size=40).map("".join)


@cache
def loaded(family: str) -> TextTokenizer:
    return TextTokenizer(described(family))


@pytest.fixture(autouse=True, scope="module")
def _short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "PIECE_CHARS", 1)
        yield


def made(tokenizer: TextTokenizer, text: str) -> list[int]:
    return unpack(tokenizer.encode(tokenizer.pieces(text)))


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_cut_at_all(family: str) -> None:
    pieces = loaded(family).pieces("".join(CORPUS))
    assert len(pieces) > 50
    assert "".join(pieces) == "".join(CORPUS)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_pieces_have_the_tokens_of_the_whole(family: str, text: str) -> None:
    assert made(loaded(family), text) == whole(family).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None)
@given(beginning=texts, one=texts, other=texts)
def test_texts_that_begin_alike_are_cut_alike(
    family: str, beginning: str, one: str, other: str
) -> None:
    first, second = (loaded(family).pieces(beginning + rest) for rest in (one, other))
    agreed = sum(map(len, loaded(family).pieces(beginning)[:-1]))
    shared = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        shared += len(left)
    assert shared >= agreed


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_at_a_cut_with_anything_around_it(family: str) -> None:
    """Each character before a cut with each after it, inside a word, a number, blanks and ends."""
    before = "09azAZÀÖØöøȟΑΩαωАяאתぁゔァヺ一龥가힣"
    around = ["", "a", "1", " ", "\n", "'", "é", "ǅ", "\u0301", "。", "▁"]
    reference = whole(family)
    for x in before:
        for y in tokenizing._AFTER:
            for left in around:
                text = "|".join(f"{left}{x}{y}{right}" for right in around)
                expected = reference.encode(text, add_special_tokens=False).ids
                assert made(loaded(family), text) == expected, (left, x, y)


def test_what_stands_before_a_cut_is_a_letter_or_digit_in_every_table() -> None:
    found = re.compile(f"[{tokenizing._BEFORE}]")
    characters = [chr(code) for code in range(0x110000) if found.match(chr(code))]
    engine = Split(Regex(r"[\p{L}\p{N}]"), "removed")
    assert len(characters) > 30_000
    for table in (unicodedata, unicodedata.ucd_3_2_0):
        assert {table.category(one)[0] for one in characters} == {"L", "N"}
    assert engine.pre_tokenize_str("".join(characters)) == []
    assert engine.pre_tokenize_str(tokenizing._AFTER)


def added(content: str, **flags: bool) -> dict[str, Any]:
    token = {"id": 5, "content": content, "special": True, "normalized": False}
    return {**token, "single_word": False, "lstrip": False, "rstrip": False, **flags}


STRANGE: list[dict[str, Any]] = [
    {"normalizer": {"type": "NFKC"}},
    {"normalizer": {"type": "Lowercase"}},
    {"pre_tokenizer": None},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}},
    {
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "use_regex": True,
            "trim_offsets": True,
        }
    },
    {"added_tokens": [added("<|im_end|>", rstrip=True)]},
    {"added_tokens": [added("<|im_end|>", lstrip=True)]},
    {"added_tokens": [added("<|im_end|>", single_word=True)]},
    {"added_tokens": [added("of course")]},
    {"added_tokens": [added("e\u0301,")]},
]


@pytest.mark.parametrize("fields", STRANGE)
def test_an_unknown_tokenizer_is_given_whole_texts(fields: dict[str, Any]) -> None:
    tokenizer = TextTokenizer(changed("gpt-2", **fields))
    text = "".join(CORPUS)
    assert tokenizer.pieces(text) == [text]


def test_gemmas_merges_decide() -> None:
    import json

    fields = json.loads(described("gemma"))
    model = fields["model"]
    vocab = {**model["vocab"], "a▁": len(model["vocab"]) + 20}
    crossing = {**model, "vocab": vocab, "merges": [*model["merges"], ["a", "▁"]]}
    tag = {**model, "vocab": {**vocab, ")▁": len(vocab) + 21}}
    tag["merges"] = [*model["merges"], [")", "▁"]]  # Gemma 3 has one such, with ">"
    byte = {**model, "vocab": {**vocab, "<0xE4>▁": len(vocab) + 21}}
    byte["merges"] = [*model["merges"], ["<0xE4>", "▁"]]
    unknown = {**model, "vocab": {k: v for k, v in model["vocab"].items() if k != "▁"}}
    unknown["merges"] = [pair for pair in model["merges"] if "▁" not in "".join(pair)]
    text = "".join(CORPUS)
    assert len(TextTokenizer(changed("gemma", model=model)).pieces(text)) > 50
    assert len(TextTokenizer(changed("gemma", model=tag)).pieces(text)) > 50
    for other in (
        crossing,
        byte,
        {**model, "ignore_merges": True},
        {**model, "dropout": 0.5},
        unknown,
    ):
        assert TextTokenizer(changed("gemma", model=other)).pieces(text) == [text]


def post(*processors: dict[str, Any]) -> dict[str, Any]:
    return {"post_processor": {"type": "Sequence", "processors": list(processors)}}


SINGLE = [
    {"SpecialToken": {"id": "<bos>", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "<|a|>", "type_id": 0}},
]
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def template() -> dict[str, Any]:
    tokens = {
        name: {"id": name, "ids": [whole("gpt-2").token_to_id(name)], "tokens": [name]}
        for name in ("<bos>", "<|a|>")
    }
    return {
        "type": "TemplateProcessing",
        "single": SINGLE,
        "pair": [*SINGLE, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": tokens,
    }


def test_what_is_put_around_a_completion() -> None:
    assert loaded("gpt-2").around == (b"", b"")
    for fields in ({"post_processor": template()}, post(LEVEL, template())):
        raw = changed("gpt-2", **fields)
        tokenizer = TextTokenizer(raw)
        assert tokenizer.around is not None
        before, after = tokenizer.around
        expected = Tokenizer.from_buffer(raw).encode("Hello").ids
        assert unpack([before, *tokenizer.encode(["Hello"]), after]) == expected
        assert [*unpack([before]), *unpack([after])] == [
            whole("gpt-2").token_to_id(name) for name in ("<bos>", "<|a|>")
        ]
    bert = {"type": "BertProcessing", "sep": ["<|a|>", 2], "cls": ["<bos>", 3]}
    assert TextTokenizer(changed("gpt-2", post_processor=bert)).around is None
    assert TextTokenizer(changed("gpt-2", **post(template(), template()))).around is None


def test_a_truncating_tokenizer_truncates_nothing_here() -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tokenizer = TextTokenizer(changed("gpt-2", truncation=truncation))
    assert len(unpack(tokenizer.encode(["one two three four five six"]))) > 3


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"added_tokens": []}', b"\xff"])
def test_what_is_no_tokenizer_is_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        TextTokenizer(raw)


def test_a_wrong_model_is_refused() -> None:
    with pytest.raises(WireError):
        TextTokenizer(changed("gpt-2", model={"type": "BPE", "vocab": 5, "merges": 3}))
