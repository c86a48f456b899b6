"""What engines have of a tenant in memory, looked at from outside: in their workers' pages."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kvstore.credentials import load_or_create
from kvstore.handoff import PrefillTicket, to_params
from kvstore.salts import Scope, salt, tag
from tests.support.live_cluster import KEYS, MODEL, LiveCluster, until

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]

WORKERS = ("prefill-0", "decode-0")
KV_BYTES = 512 << 20
WIPED_SECONDS = 5.0
PAGE = 4096
EMPTY = [0, 0]


def kv_memory(process: psutil.Process) -> tuple[int, int] | None:
    """Where a process has its KV pages: vLLM takes them as one piece of anonymous memory."""
    for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
        bounds, _, _, _, inode, *_ = line.split()
        start, stop = (int(end, 16) for end in bounds.split("-"))
        if inode == "0" and 0.98 * KV_BYTES < stop - start < 1.1 * KV_BYTES:
            return start, stop
    return None


def pages_with_bytes(cluster: LiveCluster, name: str) -> int:
    """How many of an engine's KV pages (of 4 KiB) hold anything."""
    engine = cluster.engine(name)
    for process in (engine, *engine.children(recursive=True)):
        if found := kv_memory(process):
            with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(found[0])
                held = np.frombuffer(memory.read(found[1] - found[0]), dtype=np.uint64)
            return int(held.reshape(-1, PAGE // 8).any(axis=1).sum())
    raise AssertionError(f"no KV memory of {name}")


def in_both(cluster: LiveCluster) -> list[int]:
    return [pages_with_bytes(cluster, name) for name in WORKERS]


def memory(cluster: LiveCluster, tenant: str) -> dict[tuple[str, str], tuple[int, int]]:
    """What a proxy tells its operator of a tenant."""
    told = json.loads(cluster.operator("/admin/tenants"))["tenants"]
    (mine,) = (one for one in told if one["name"] == tenant)
    return {(one["worker"], one["tier"]): (one["kept"], one["used"]) for one in mine["memory"]}


def flush(cluster: LiveCluster, tenant: str) -> Any:
    return json.loads(cluster.operator(f"/admin/tenants/{tenant}/flush", "POST"))


def test_a_flush_overwrites_what_idle_engines_have_kept(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    assert in_both(cluster) == EMPTY
    tokens = prompt(330)
    assert cluster.complete("red", tokens).path == "disaggregated"
    assert cluster.complete("red", tokens).cached >= 320
    assert min(in_both(cluster)) > 1000
    until(
        lambda: all(memory(cluster, "red").get((w, "gpu"), (0, 1))[1] == 0 for w in WORKERS),
        10,
        "nothing of it is in use",
    )
    kept = memory(cluster, "red")
    assert all(kept[worker, "gpu"][0] > 0 for worker in WORKERS)
    told = flush(cluster, "red")
    assert told["unconfirmed"] == told["not_overwritten_yet"] == []
    assert told["overwritten_ms"] < WIPED_SECONDS * 1000
    sizes = {(one["worker"], one["tier"]): one["bytes"] for one in told["overwritten"]}
    assert all(sizes[worker, "gpu"] == kept[worker, "gpu"][0] for worker in WORKERS)
    # To look takes a while, and errands of the gate have a page until the step after them.
    until(lambda: in_both(cluster) == EMPTY, WIPED_SECONDS, "nothing is left of it")
    assert cluster.complete("red", tokens).cached == 0


def test_a_flush_takes_back_what_waits_for_a_decode_worker_that_never_asks(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    """Its lease is longer than a flush may take."""
    key = load_or_create(Path(cluster.config.state_dir)).salt_key()
    own = salt(key, Scope("red", flush(cluster, "red")["epoch"]))
    leg = {"model": MODEL, "prompt": prompt(330), "max_tokens": 1, "cache_salt": own}
    ticket = to_params(PrefillTicket("5a" * 16, ttl_ms=60_000))
    sent = {**leg, "kv_transfer_params": ticket}
    assert cluster.worker("prefill-0", "POST", "/v1/completions", sent)[0] == 200
    assert pages_with_bytes(cluster, "prefill-0") > 1000
    told = flush(cluster, "red")
    assert told["not_overwritten_yet"] == []
    until(lambda: in_both(cluster) == EMPTY, WIPED_SECONDS, "nothing is left of it")


def test_nothing_is_left_of_a_request_of_which_nothing_may_be_kept(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    flush(cluster, "red")
    tokens = prompt(330)
    body = {"model": MODEL, "prompt": tokens, "max_tokens": 40, "temperature": 0}
    for _ in range(2):
        reply = cluster.post("/v1/completions", body, KEYS["blue"], {"cache-control": "no-store"})
        assert (reply.path, reply.cached) == ("disaggregated", 0)
        until(lambda: in_both(cluster) == EMPTY, WIPED_SECONDS, "all of its pages are overwritten")
        time.sleep(1.5)  # Usage is told every second while it changes.
        assert not sum(map(sum, memory(cluster, "blue").values())), "nor in DRAM"
    assert cluster.complete("blue", tokens).cached == 0


def test_a_flush_ends_what_runs_and_overwrites_it_as_well(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    flush(cluster, "blue")
    tokens, ends = prompt(400), []
    body = {"prompt": tokens, "max_tokens": 2000, "ignore_eos": True, "stream": True}

    def run() -> None:
        with cluster.opened("green", {"model": MODEL, **body}) as connection:
            ends.append(connection.getresponse().read())

    running = threading.Thread(target=run)
    running.start()
    until(lambda: memory(cluster, "green").get(("decode-0", "gpu"), (0, 0))[1] > 0, 60, "it runs")
    told = flush(cluster, "green")
    assert told["not_overwritten_yet"] == []
    running.join(10)
    assert not running.is_alive()
    assert b"cache_flushed" in ends[0]
    until(lambda: in_both(cluster) == EMPTY, WIPED_SECONDS, "its pages are overwritten")


def test_a_gate_lets_no_epoch_in_that_is_over(cluster: LiveCluster, prompt: Prompts) -> None:
    key = load_or_create(Path(cluster.config.state_dir)).salt_key()
    whose, old = tag(key, "nobody-known"), salt(key, Scope("nobody-known", epoch=4))
    body = {"model": MODEL, "prompt": prompt(40), "max_tokens": 200, "cache_salt": old}
    for name in WORKERS:
        answers: list[tuple[int, bytes]] = []
        running = threading.Thread(
            target=lambda name=name, answers=answers: answers.append(
                cluster.worker(name, "POST", "/v1/completions", {**body, "ignore_eos": True})
            )
        )
        running.start()
        time.sleep(0.5)
        began = time.monotonic()
        standing = [[whose, 5, 0.0, 1.0]]
        assert cluster.worker(name, "POST", "/kvferry/tenancy", standing)[0] == 200
        assert time.monotonic() - began < 0.5
        running.join(5)
        assert answers[0][0] == 409
        assert json.loads(answers[0][1])["error"]["code"] == "cache_flushed"
        assert cluster.worker(name, "POST", "/v1/completions", body)[0] == 409
        standing = [[whose, 2, 0.0, 1.0]]
        assert cluster.worker(name, "POST", "/kvferry/tenancy", standing)[0] == 200
        assert cluster.worker(name, "POST", "/v1/completions", body)[0] == 409
        assert cluster.worker(name, "POST", "/kvferry/tenancy", [["x"]])[0] == 400
        assert cluster.worker(name, "POST", "/v1/responses", body)[0] == 404
