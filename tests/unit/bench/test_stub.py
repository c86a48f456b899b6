"""What the stub decides without a network: its configuration, its cache, its reading."""

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stub.cache import PrefixCache
from bench.stub.config import StubConfig
from bench.stub.requests import BadRequest, asked
from bench.stub.serving import factors
from bench.stub.wire import Frames


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttft_ms": -1.0},
        {"itl_ms": float("nan")},
        {"jitter": float("inf")},
        {"block_words": 0},
        {"output_tokens": 0},
        {"slots": -1},
    ],
)
def test_delays_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StubConfig(**wrong)  # type: ignore[arg-type]


def words(count: int, start: int = 0) -> list[str]:
    return [f"w{index}" for index in range(start, start + count)]


def cached(cache: PrefixCache, scope: str, prompt: list[str]) -> int:
    chain = cache.chain(scope, prompt)
    found = cache.find(chain, len(prompt))
    cache.keep(chain)
    return found


def test_whole_blocks_of_the_prefix_are_found_but_never_the_last_word() -> None:
    cache = PrefixCache(100, 4)
    assert cached(cache, "key", words(10)) == 0
    assert cached(cache, "key", words(10)) == 8
    assert cached(cache, "key", words(8)) == 4
    assert cached(cache, "key", words(6) + words(4, 50)) == 4
    assert cached(cache, "key", words(8, 1)) == 0


def test_keys_share_nothing() -> None:
    cache = PrefixCache(100, 4)
    cached(cache, "one", words(9))
    assert cached(cache, "two", words(9)) == 0


def test_the_least_recently_used_goes_first_and_of_a_prompt_its_end() -> None:
    cache = PrefixCache(3, 4)
    cached(cache, "key", words(9))
    cached(cache, "key", words(9, 100))
    assert len(cache) == 3
    assert cached(cache, "key", words(9)) == 4


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_the_cache_never_grows_beyond_its_capacity(prompts: list[int], capacity: int) -> None:
    cache = PrefixCache(capacity, 2)
    for prompt in prompts:
        found = cached(cache, "key", words(5, prompt * 2))
        assert found % 2 == 0
        assert len(cache) <= capacity


def test_a_prompt_is_counted_in_words_or_token_ids() -> None:
    def count(body: object, chat: bool = False) -> int:
        return len(asked(json.dumps(body).encode(), chat, "", 1).words)

    assert count({"prompt": " a b\nc "}) == 3
    assert count({"prompt": [5, 6]}) == 2
    assert count({"prompt": [[5, 6, 7]]}) == 3
    messages = [
        {"role": "system", "content": "a b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
    ]
    assert count({"messages": messages}, chat=True) == 3


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"prompt":["a","b"]}', b'{"prompt":"a","max_tokens":-1}']
)
def test_a_request_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        asked(body, False, "", 16)


@pytest.mark.parametrize("chat", [False, True])
def test_built_in_advance_or_not_the_bytes_are_the_same(chat: bool) -> None:
    frames = Frames(chat, "stub")
    singly = b"".join(frames.token(index, index == 4) for index in range(5))
    assert frames.run(5) == singly
    assert singly.count(b"length") == 1
    assert frames.token(5000, False).count(b"w5000") == 1


def drawn(config: StubConfig, prompt: str) -> list[float]:
    request = asked(json.dumps({"prompt": prompt}).encode(), False, "", 4)
    return list(islice(factors(config, request), 5))


def test_jitter_is_of_the_seed_and_the_content() -> None:
    config = StubConfig(jitter=0.5, seed=1)
    first = drawn(config, "a b")
    assert first == drawn(config, "a b")
    assert len(set(first)) == 5
    assert first != drawn(config, "a c")
    assert first != drawn(StubConfig(jitter=0.5, seed=2), "a b")
    assert drawn(StubConfig(), "a b") == [1.0] * 5
