"""Parts are killed at the worst moments; clients get the right text every time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from kvstore.index import Held
from tests.support.live_cluster import LiveCluster, Reply, until

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]


def in_background(work: Callable[[], Reply]) -> Callable[[], Reply]:
    """Starts ``work``; the result is called to wait for its reply."""
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(work()))
    thread.start()

    def reply() -> Reply:
        thread.join(300)
        assert replies, "the request did not end"
        return replies[0]

    return reply


def test_the_prefill_worker_dies_during_before_and_after_shipping(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    kept, during, before, after = prompt(600), prompt(1400), prompt(200), prompt(200)
    assert cluster.complete("red", kept).path == "disaggregated"

    waiting = in_background(lambda: cluster.stream("red", during))
    # The first of three chunks of 512 tokens has been computed, and leaves.
    until(lambda: cluster.metric("prefill-0", "vllm:num_requests_running"), 10, "prefill works")
    time.sleep(2.5)
    cluster.kill_engine("prefill-0")
    reply = waiting()
    assert (reply.status, reply.path) == (200, "recomputed")
    assert reply.text == cluster.alone(during, "alone-during")
    assert reply.cached == 0

    reply = cluster.stream("red", before)
    assert reply.status == 200
    assert reply.path in {"recomputed", "decode-only"}
    assert reply.text == cluster.alone(before, "alone-before")

    cluster.await_worker("prefill-0")
    cluster.await_known("prefill-0", "red", kept, Held(gpu=0, dram=16))
    cluster.forget("decode-0")
    dram = cluster.stream("red", kept)
    assert (dram.path, dram.cached) == ("disaggregated", 512)
    assert dram.text == cluster.alone(kept, "alone-kept")

    waiting = in_background(lambda: cluster.stream("red", after, max_tokens=40, ignore_eos=True))
    until(
        lambda: (
            cluster.metric("prefill-0", "vllm:num_requests_running") == 0
            and cluster.metric("decode-0", "vllm:num_requests_running") == 1
        ),
        30,
        "decode streams",
    )
    cluster.kill_engine("prefill-0")
    reply = waiting()
    assert reply.status == 200
    expected = cluster.alone(after, "alone-after", max_tokens=40, ignore_eos=True)
    assert reply.text == expected
    cluster.await_worker("prefill-0")


def test_the_dram_tier_dies_and_comes_back(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens, kept = prompt(300), prompt(300)
    cluster.complete("red", kept)
    cluster.await_known("prefill-0", "red", kept, Held(gpu=9, dram=8))
    cluster.kill_dram()
    cluster.await_known("prefill-0", "red", kept, Held(gpu=9, dram=0))
    reply = cluster.complete("red", tokens)
    assert (reply.status, reply.path) == (200, "disaggregated")
    assert reply.text == cluster.alone(tokens, "alone-no-dram")

    def stored_and_found() -> bool:
        fresh = prompt(300)
        cluster.complete("red", fresh)
        for worker in ("prefill-0", "decode-0"):
            cluster.forget(worker)
        if cluster.complete("red", fresh).cached != 256:
            return False
        cluster.await_known("prefill-0", "red", fresh, Held(gpu=9, dram=8))
        return True

    until(stored_and_found, 90, "the tier stores and finds again")
