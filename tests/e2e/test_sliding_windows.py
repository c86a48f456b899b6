"""A model of six KV groups, five of them windows of 512 tokens: shipped, cached, and right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]

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
