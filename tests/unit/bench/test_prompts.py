"""Prompts of an exact length, new every time. The tokenizer is a tiny one made here."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from bench.prompts import Prompts, spread_lengths


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    # One token for each character, which is exact by construction.
    alphabet = {chr(code): code for code in range(256)}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    return Prompts(path)


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_text_that_cannot_be_exact_is_refused_not_bent(
    prompts: Prompts, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "count", lambda _text: tokens + 1)
    with pytest.raises(ValueError, match=f"exactly {tokens} tokens"):
        prompts.make(tokens, random.Random(1))


def test_the_same_seed_gives_the_same_prompts_and_another_one_others(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "count", lambda _text: 40)
    first, again = (prompts.make(40, random.Random("a")) for _ in range(2))
    assert first == again
    other = prompts.make(40, random.Random("b"))
    # They part within the number that begins each, so not one block is shared.
    assert first.text[:12] != other.text[:12]


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(2, 200))
def test_lengths_spread_from_end_to_end(shortest: int, more: int, count: int) -> None:
    lengths = spread_lengths(shortest, shortest + more, count)
    assert len(lengths) == count
    assert (lengths[0], lengths[-1]) == (shortest, shortest + more)
    assert lengths == sorted(lengths)
