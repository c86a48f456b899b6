"""Workers of several ranks: each rank's KV heads reach the rank that needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import models
from deploy.places import homes
from kvstore.index import Held
from tests.support.live_cluster import LiveCluster
from tests.support.tiny_llama import write_tiny_llama

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]

_SMALL = """
max_model_len = 2048
[prefill]
kv_gib = 0.25
ranks = {prefill}
[decode]
kv_gib = 0.25
ranks = {decode}
[dram]
gib = 0.25
port = 0
http_port = 0
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four query heads, two KV heads, random weights; the default model's tokenizer."""
    cache = homes(os.environ, os.getuid()).cache
    tokenizer = Path(models.prepare(models.DEFAULT, cache, print))
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny-llama", tokenizer)


@pytest.fixture(scope="module", params=[(2, 2), (2, 1)], ids=str)
def ranked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Path
) -> Iterator[LiveCluster]:
    prefill, decode = request.param
    settings = _SMALL.format(prefill=prefill, decode=decode)
    cluster = LiveCluster(tmp_path_factory.mktemp("cluster"), settings, str(tiny))
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()


def test_greedy_output_is_that_of_one_engine(ranked: LiveCluster, prompt: Prompts) -> None:
    for length in (33, 100, 700):
        tokens = prompt(length)
        reply = ranked.stream("red", tokens, max_tokens=16, ignore_eos=True)
        alone = ranked.alone(tokens, f"alone-{length}", max_tokens=16, ignore_eos=True)
        assert (reply.path, reply.text) == ("disaggregated", alone), length


def test_every_rank_finds_its_heads_in_dram(ranked: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(600)
    ranked.stream("red", tokens)
    for worker in ("prefill-0", "decode-0"):
        ranked.forget(worker)
    ranked.await_known("prefill-0", "red", tokens, Held(gpu=0, dram=16))
    reply = ranked.stream("red", tokens, max_tokens=16, ignore_eos=True)
    alone = ranked.alone(tokens, "alone-dram", max_tokens=16, ignore_eos=True)
    assert (reply.path, reply.text) == ("disaggregated", alone)
    assert reply.breakdown["cached"] == {"gpu": 0, "dram": 512}
