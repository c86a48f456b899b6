"""Two LoRA adapters and their base, on real engines; over TCP, where every socket speaks CURVE."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy import models
from deploy.places import homes
from kvstore.adapters import FILES
from kvstore.index import Held
from tests.support.live_cluster import KEYS, LiveCluster, until
from tests.support.lora_adapters import write_adapter
from tests.support.tiny_llama import write_tiny_llama

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]

CHAT = "/v1/chat/completions"
BASE = "tiny-llama"
NAMES = (BASE, "poet", "clerk")

_SETTINGS = """
max_model_len = 2048
[network]
kind = "tcp"
[prefill]
kv_gib = 0.25
[decode]
kv_gib = 0.25
[dram]
gib = 0.25
port = 0
http_port = 0
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model and adapters, by name."""
    tokenizer = Path(models.prepare(models.DEFAULT, homes(os.environ, os.getuid()).cache, print))
    home = tmp_path_factory.mktemp("models")
    model = write_tiny_llama(home / BASE, tokenizer)
    adapters = {
        name: write_adapter(home / name, model, seed, weight=3.0)
        for seed, name in enumerate(("poet", "clerk", "other"))
    }
    return {BASE: model, **adapters}


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]
) -> Iterator[LiveCluster]:
    named = "".join(
        f'[[adapters]]\nname = "{name}"\npath = "{folders[name]}"\n' for name in ("poet", "clerk")
    )
    home = tmp_path_factory.mktemp("cluster")
    running = LiveCluster(home, _SETTINGS + named, str(folders[BASE]))
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def test_kv_ships_over_tcp(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens: list[int] = []
    for length in (65, 600):
        tokens = prompt(length)
        reply = cluster.stream("red", tokens, max_tokens=16)
        assert (reply.status, reply.path) == (200, "disaggregated")
        assert reply.text == cluster.alone(tokens, f"alone-{length}", max_tokens=16)
    cluster.forget("decode-0")
    assert cluster.complete("red", tokens).cached >= 576
    assert cluster.complete("blue", tokens).cached == 0


def test_each_answers_as_one_engine_with_that_adapter(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    tokens = prompt(300)
    texts = []
    for name in NAMES:
        reply = cluster.stream("red", tokens, model=name, max_tokens=16, ignore_eos=True)
        assert (reply.status, reply.path, reply.cached) == (200, "disaggregated", 0)
        whole = cluster.complete("blue", tokens, model=name, max_tokens=16, ignore_eos=True)
        asked = cluster.asked_for(name)
        assert reply.chunks[0]["model"] == whole.body["model"] == asked
        alone = cluster.alone(tokens, f"alone-{name}", model=asked, max_tokens=16, ignore_eos=True)
        assert reply.text == whole.text == alone
        texts.append(alone)
    assert len(set(texts)) == 3


@pytest.mark.parametrize("other", ["poet", "clerk"])
def test_the_base_is_not_changed_by_who_shares_its_steps(
    cluster: LiveCluster, prompt: Prompts, other: str
) -> None:
    tokens = prompt(100)
    fields = {"max_tokens": 16, "ignore_eos": True}
    alone = cluster.alone(tokens, f"alone-beside-{other}", **fields)
    body = {"model": other, "prompt": prompt(40), "max_tokens": 1500, "ignore_eos": True}
    with cluster.opened("green", body):
        until(lambda: cluster.metric("decode-0", "vllm:num_requests_running"), 10, "it runs")
        assert cluster.stream("red", tokens, **fields).text == alone
        assert cluster.metric("decode-0", "vllm:num_requests_running") == 1
    until(lambda: not cluster.metric("decode-0", "vllm:num_requests_running"), 10, "it ended")


def test_chats_are_told_and_rendered_as_the_engine_does(cluster: LiveCluster) -> None:
    """Whole and streamed, and all three of them at once."""
    messages = [{"role": "user", "content": "Tell me about the sea. " * 12}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 16}

    def learnt() -> bool:
        asked = cluster.post(CHAT, {**body, "model": BASE}, KEYS["green"]).status == 200
        return asked and cluster.rendered("proxy") > 0

    until(learnt, 30, "the proxy renders")
    rendered = cluster.rendered("proxy")

    def answers(name: str) -> tuple[str, int]:
        whole = cluster.post(CHAT, {**body, "model": name}, KEYS["red"])
        assert (whole.status, whole.body["model"]) == (200, cluster.asked_for(name))
        told = cluster.post(CHAT, {**body, "model": name, "stream": True}, KEYS["blue"])
        assert (told.status, told.path) == (200, "disaggregated")
        pieces = [one["choices"][0]["delta"].get("content") or "" for one in told.chunks]
        text = str(whole.body["choices"][0]["message"]["content"])
        assert "".join(pieces) == text
        return text, int(whole.body["usage"]["prompt_tokens"])

    with ThreadPoolExecutor(3) as clients:
        together = list(clients.map(answers, NAMES))
    assert cluster.rendered("proxy") == rendered + 6
    for name, found in zip(NAMES, together, strict=True):
        asked = {**body, "model": cluster.asked_for(name), "cache_salt": f"alone-{name}"}
        status, raw = cluster.worker("decode-0", "POST", CHAT, asked)
        alone = json.loads(raw)
        text = alone["choices"][0]["message"]["content"]
        assert (status, found) == (200, (text, alone["usage"]["prompt_tokens"]))
        status, raw = cluster.worker("decode-0", "POST", f"{CHAT}/render", asked)
        assert (status, len(json.loads(raw)["token_ids"])) == (200, found[1])
    assert len({text for text, _ in together}) == 3


def test_what_one_computed_no_other_finds(cluster: LiveCluster, prompt: Prompts) -> None:
    """In engines' memory, in DRAM, and in what the proxy thinks."""
    tokens = prompt(600)
    first = cluster.stream("red", tokens, model="poet")
    assert (first.path, first.cached) == ("disaggregated", 0)
    cluster.await_known("prefill-0", "red", tokens, Held(gpu=18, dram=16), "poet")
    for name, held in ((BASE, 0), ("clerk", 0), ("poet", 576)):
        told = cluster.explain("red", tokens, model=name)
        assert [worker["gpu"] for worker in (*told["prefill"], *told["decode"])] == [held, held]
        assert told["prefill"][0]["held"] == held
    for name in (BASE, "clerk"):
        assert cluster.stream("red", tokens, model=name).cached == 0
    again = cluster.stream("red", tokens, model="poet")
    assert (again.path, again.text, again.cached) == ("decode-only", first.text, 576)
    cluster.forget("decode-0")
    shipped = cluster.stream("red", tokens, model="poet")
    assert (shipped.path, shipped.text, shipped.cached) == ("disaggregated", first.text, 576)

    other = prompt(600)
    first = cluster.stream("red", other, model="poet")
    for worker in ("prefill-0", "decode-0"):
        cluster.forget(worker)
    cluster.await_known("prefill-0", "red", other, Held(gpu=0, dram=16), "poet")
    for name in (BASE, "clerk"):
        assert cluster.stream("red", other, model=name).cached == 0
    assert cluster.stream("blue", other, model="poet").cached == 0
    loaded = cluster.stream("red", other, model="poet")
    assert (loaded.path, loaded.text) == ("disaggregated", first.text)
    assert loaded.breakdown["cached"] == {"gpu": 0, "dram": 512}


@pytest.mark.skipif(
    os.environ.get("KVFERRY_AUDIT") != "full", reason="restarts both engines: in make audit"
)
def test_a_name_for_other_weights_finds_nothing_of_what_it_stood_for(
    cluster: LiveCluster, folders: dict[str, Path], prompt: Prompts
) -> None:
    tokens = prompt(600)
    before = cluster.stream("red", tokens, model="poet")
    known = cluster.asked_for("poet")
    cluster.await_known("prefill-0", "red", tokens, Held(gpu=18, dram=16), "poet")
    for name in FILES:
        shutil.copy(folders["other"] / name, folders["poet"] / name)
    changed = cluster.asked_for("poet")
    still = cluster.stream("red", tokens, model="poet")
    assert (still.chunks[0]["model"], still.cached) == (known, 576)
    workers = ("prefill-0", "decode-0")
    for worker in workers:
        cluster.kill_engine(worker)
    for worker in workers:
        cluster.await_worker(worker)
    after = cluster.stream("red", tokens, model="poet")
    assert (after.status, after.path, after.cached) == (200, "disaggregated", 0)
    assert after.chunks[0]["model"] == changed != known
    assert after.text == cluster.alone(tokens, "alone-changed", model=changed) != before.text
    gone = cluster.complete("red", tokens, model=known)
    assert (gone.status, gone.body["error"]["code"]) == (404, "model_not_found")
    clerk = cluster.stream("red", tokens, model="clerk")
    assert (clerk.status, clerk.cached) == (200, 0)
