"""The text of prompts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.schedule import Segment
from bench.load.words import WORDS, Words

keys = st.text("abc-0123456789", min_size=1, max_size=12)

repeatable = settings(deadline=None, derandomize=True)


def test_no_word_is_listed_twice() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


@repeatable
@given(keys, st.integers(1, 200), st.text(max_size=8))
def test_a_segment_has_the_words_asked_for(key: str, tokens: int, salt: str) -> None:
    words = Words(salt).text(Segment(key, tokens))
    assert words.startswith(" ")
    assert len(words.split(" ")[1:]) == tokens
    assert set(words.split()) <= set(WORDS)


@repeatable
@given(keys, st.integers(1, 100), st.integers(1, 100))
def test_a_shorter_segment_of_a_key_begins_the_longer_one(key: str, one: int, other: int) -> None:
    short, long = sorted((one, other))
    words = Words("salt")
    assert words.text(Segment(key, long)).split()[:short] == words.text(Segment(key, short)).split()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((Words("a"), "own-1"), (Words("b"), "own-1")),
        ((Words("a"), "own-1"), (Words("a"), "own-2")),
        ((Words("a"), "own-1"), (Words("a"), "prefix-1")),
    ],
)
def test_another_salt_or_key_has_another_text(
    one: tuple[Words, str], other: tuple[Words, str]
) -> None:
    # Within the first 16 words, which are less than one cache block of most servers.
    texts = [words.text(Segment(key, 16)) for words, key in (one, other)]
    assert texts[0] != texts[1]


def test_many_salts_give_as_many_beginnings() -> None:
    texts = {Words(f"{number}").text(Segment("own-0", 8)) for number in range(2000)}
    assert len(texts) == 2000


def test_the_same_salt_gives_the_same_text_in_another_process() -> None:
    # Worked out once: a text that follows from the interpreter's hash would differ.
    assert Words("salt").text(Segment("own-0", 4)) == " information issue issue water"


def test_a_prompt_is_its_segments_one_after_the_other() -> None:
    words = Words("salt")
    segments = (Segment("prefix-0", 3), Segment("own-1", 2))
    prompt = words.prompt(segments)
    assert prompt.split() == [word for one in segments for word in words.text(one).split()]
    assert prompt == prompt.strip()
