"""A model of six KV groups, five of them windows of 512 tokens: shipped, cached, and right."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kvstore.index import Held
from tests.support.live_cluster import LiveCluster, until

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]

TEXTS = [
    "Hello",
    " two  blanks \n\n and tabs\t\t. \n\n\n\n ",
    "<bos><start_of_turn>user\nHi ▁▁<unused1> <h1>it</h1> <0x0A>",
    "Grüße, 一二三。 👍🏽 e\u0301 \u00a0 it's WE'LL 1234567 ½ \U0001fae8",
    "def f(x):\n\tif x == 0:  # none\n\t\treturn {'a': [1, 2]}\n" * 40,
]

LENGTHS = [33, 300, 513, 543, 1055, 1500]
"""Shorter and longer than the window; of 543 and 1055 the engine gives a block away at the end
that the last token attends to."""


def test_greedy_output_is_that_of_a_single_engine(
    sliding_cluster: LiveCluster, prompt: Prompts
) -> None:
    for length in LENGTHS:
        tokens = prompt(length)
        reply = sliding_cluster.stream("red", tokens, max_tokens=24, ignore_eos=True)
        alone = sliding_cluster.alone(tokens, f"alone-{length}", max_tokens=24, ignore_eos=True)
        assert (reply.path, reply.text) == ("disaggregated", alone), length
        assert reply.cached == 0


def test_the_proxy_makes_the_tokens_that_the_worker_makes(sliding_cluster: LiveCluster) -> None:
    until(
        lambda: (
            sliding_cluster.complete("red", "Hi").status == 200
            and sliding_cluster.rendered("proxy")
        ),
        60,
        "it has learnt",
    )
    before = sliding_cluster.rendered("proxy")
    for text in TEXTS:
        reply = sliding_cluster.complete("red", text, max_tokens=1, return_token_ids=True)
        status, raw = sliding_cluster.worker(
            "decode-0", "POST", "/v1/completions/render", {"prompt": text}
        )
        assert status == 200, raw
        assert reply.body["choices"][0]["prompt_token_ids"] == json.loads(raw)[0]["token_ids"], text
    assert sliding_cluster.rendered("proxy") == before + len(TEXTS)


def test_both_tiers_are_hit(sliding_cluster: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(1300)
    first = sliding_cluster.stream("red", tokens)
    sliding_cluster.forget("decode-0")
    engine_hit = sliding_cluster.stream("red", tokens)
    assert engine_hit.breakdown["cached"] == {"gpu": 1280, "dram": 0}
    for worker in ("prefill-0", "decode-0"):
        sliding_cluster.forget(worker)
    dram_hit = sliding_cluster.stream("red", tokens)
    assert dram_hit.breakdown["cached"] == {"gpu": 0, "dram": 1280}
    assert {reply.path for reply in (first, engine_hit, dram_hit)} == {"disaggregated"}
    assert {first.text, engine_hit.text, dram_hit.text} == {first.text}
    for worker in ("prefill-0", "decode-0"):
        sliding_cluster.forget(worker)
    longer = [*tokens, *prompt(200)]
    turn = sliding_cluster.stream("red", longer)
    assert turn.breakdown["cached"] == {"gpu": 0, "dram": 1280}
    assert turn.text == sliding_cluster.alone(longer, "alone-turn")
    assert sliding_cluster.stream("blue", longer).cached == 0


def test_only_what_can_be_resumed_anywhere_is_known_of_dram(
    sliding_cluster: LiveCluster, prompt: Prompts
) -> None:
    """Whoever shares only the beginning of a long prompt would find no window there."""
    long, short = prompt(1300), prompt(300)
    for tokens in (long, short):
        sliding_cluster.stream("red", tokens)
    sliding_cluster.await_known("prefill-0", "red", short, Held(gpu=9, dram=8))
    sliding_cluster.await_known("prefill-0", "red", long, Held(gpu=40, dram=0))


def test_whole_chunks_held_but_for_the_last_token(
    sliding_cluster: LiveCluster, prompt: Prompts
) -> None:
    """Prefill finds 992 tokens in its memory and all 1,024 in DRAM; decode computes the rest."""
    tokens = prompt(1024)
    first = sliding_cluster.stream("red", tokens)
    sliding_cluster.forget("decode-0")
    again = sliding_cluster.stream("red", tokens)
    assert (again.path, again.text) == ("disaggregated", first.text)
    assert again.breakdown["cached"] == {"gpu": 992, "dram": 0}
