"""Tenants on real engines: what one scope sends no other one finds, whatever happens in between.

``KVFERRY_AUDIT=full`` (``make audit``) sends 10,000 requests; otherwise it is a sample of them.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.adversary import Adversary, Attempt, Oracle
from tests.support.audited import ADAPTERS, audited, settings, write_models
from tests.support.live_cluster import KEYS, LiveCluster, Reply, until

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]

FULL = os.environ.get("KVFERRY_AUDIT") == "full"
REQUESTS = 10_000 if FULL else 240
PARTS = ["deterministic", "transport", *(["volatile"] if FULL else [])]
"""What is volatile is looked for in all files of a host: tests/integration/bench has it smaller."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """A tiny model with two adapters, and memory that is soon full."""
    model = write_models(tmp_path_factory.mktemp("model"))
    running = LiveCluster(tmp_path_factory.mktemp("cluster"), settings(model), str(model))
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def ask(cluster: LiveCluster, attempt: Attempt, **fields: Any) -> Reply:
    body: dict[str, Any] = {"model": attempt.model, "max_tokens": 2, **fields}
    if attempt.isolation:
        body["prompt_cache_isolation_key"] = attempt.isolation
    if not attempt.kept:
        body["no_store"] = True
    if attempt.salt:
        body |= {"cache_salt": attempt.salt, "kv_transfer_params": {"kvferry": {}}, "priority": -1}
    return cluster.complete(attempt.tenant, list(attempt.prompt), **body)


def flush(cluster: LiveCluster, tenant: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        cluster.operator(f"/admin/tenants/{tenant}/flush", method="POST")
    )
    assert told["unconfirmed"] == []
    return told


@dataclass
class Siege:
    """One thread for each tenant, so that each knows in which order its own requests went."""

    cluster: LiveCluster
    requests: int
    cached: Counter[str] = field(default_factory=Counter)
    stolen: list[tuple[Attempt, int, int]] = field(default_factory=list)
    broken: list[tuple[int, object]] = field(default_factory=list)
    restarting: threading.Lock = field(default_factory=threading.Lock)
    restarts: int = 0

    def run(self) -> None:
        with ThreadPoolExecutor(len(KEYS)) as pool:
            for done in [pool.submit(self._tenant, *one) for one in enumerate(KEYS)]:
                done.result()

    def _tenant(self, seed: int, tenant: str) -> None:
        # The same seed of beginnings for all: they differ in what they are, not in what they send.
        adversary = Adversary(1, [tenant], ["tiny-llama", *ADAPTERS])
        adversary.turn(seed)
        oracle = Oracle()
        for number in range(self.requests // len(KEYS)):
            if FULL and number % 250 == 0:
                print(f"{tenant}: {number} requests, {len(self.stolen)} stolen", flush=True)
            self._happens(adversary.event(), tenant, oracle)
            attempt = adversary.attempt()
            most = oracle.most(attempt)
            oracle.sent(attempt)
            reply = ask(self.cluster, attempt, stream=bool(number % 2), **_usage(number))
            if reply.status != 200:
                self.broken.append((reply.status, reply.body))
                continue
            self.cached[tenant] += reply.cached
            if reply.cached > most:
                self.stolen.append((attempt, reply.cached, most))

    def _happens(self, event: str, tenant: str, oracle: Oracle) -> None:
        if event == "flush":
            flush(self.cluster, tenant)
            oracle.flushed(tenant)
        elif event == "forget":
            with suppress(OSError):  # another one's restart: it forgets all the more
                assert self.cluster.worker("prefill-0", "POST", "/reset_prefix_cache")[0] == 200
        elif event == "restart" and FULL and self.restarting.acquire(blocking=False):
            try:
                self.cluster.kill_engine("prefill-0")
                self.cluster.await_worker("prefill-0")
                self.restarts += 1
            finally:
                self.restarting.release()


def _usage(number: int) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if number % 2 else {}


@pytest.mark.timeout(2 * 3600 if FULL else 600)
def test_nobody_finds_what_another_scope_has_sent(cluster: LiveCluster) -> None:
    siege = Siege(cluster, REQUESTS)
    siege.run()
    told = f"stolen {len(siege.stolen)}, refused {len(siege.broken)}, restarts {siege.restarts}"
    print(f"{REQUESTS} requests: cached {dict(siege.cached)}, {told}")
    assert siege.stolen == []
    assert [one for one in siege.broken if one[0] not in {409, 503}] == []
    assert len(siege.broken) < REQUESTS / 10
    assert siege.restarts > 0 or not FULL
    assert all(siege.cached[tenant] > 0 for tenant in KEYS), "a cache that is off hides nothing"


def test_a_flush_is_in_force_everywhere_and_soon(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(600)
    assert [cluster.complete("red", tokens).cached > 500 for _ in range(2)] == [False, True]
    assert cluster.complete("blue", tokens).cached == 0
    told = flush(cluster, "red")
    assert told["not_overwritten_yet"] == []
    assert {(one["worker"], one["tier"]) for one in told["overwritten"]} == {
        ("prefill-0", "gpu"),
        ("prefill-0", "dram"),
        ("decode-0", "gpu"),
    }
    print(f"unreachable {told['unreachable_ms']} ms, overwritten {told['overwritten_ms']} ms")
    assert cluster.complete("red", tokens).cached == 0
    assert cluster.complete("blue", tokens).cached > 500
    assert cluster.complete("red", tokens).cached > 500


def test_a_flush_ends_what_runs(cluster: LiveCluster, prompt: Prompts) -> None:
    replies: list[Reply] = []
    body = {"max_tokens": 1500, "ignore_eos": True}
    working = threading.Thread(
        target=lambda: replies.append(cluster.complete("red", prompt(100), **body))
    )
    working.start()
    until_running(cluster)
    flush(cluster, "red")
    working.join(60)
    (reply,) = replies
    assert (reply.status, reply.body["error"]["code"]) == (409, "cache_flushed")


def until_running(cluster: LiveCluster) -> None:
    until(lambda: cluster.metric("decode-0", "vllm:num_requests_running"), 20, "decode works")


def test_what_is_not_to_be_kept_is_not(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(600)
    for _ in range(2):
        reply = cluster.complete("green", tokens, no_store=True)
        assert (reply.status, reply.cached) == (200, 0)
    assert cluster.complete("green", tokens).cached == 0


# Last: it sends so much that caches hold little else.
@pytest.mark.parametrize("part", PARTS)
def test_the_audit_finds_nothing(cluster: LiveCluster, tmp_path: Path, part: str) -> None:
    code, told = audited(cluster, tmp_path, part)
    print(told["metrics"])
    assert code == 0
    if part == "deterministic":
        assert told["metrics"]["cross_tenant_cached_tokens"] == 0
        assert told["metrics"]["same_tenant_hits"] > 0
