"""What a client sees of a whole cluster, on real engines over ipc."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from deploy import drain
from kvstore.credentials import load_or_create
from kvstore.index import Held
from tests.support.live_cluster import KEYS, MODEL, LiveCluster, read, until

pytestmark = pytest.mark.engine

Prompts = Callable[[int], list[int]]

LENGTHS = [1, 31, 32, 33, 63, 64, 65, 96, 150, 512, 513, 700]
"""Around the borders of a block (32) and of a prefill chunk (512)."""

STAGES = ("route", "queue", "prefill", "ship", "handover", "first_decode")


def test_greedy_output_is_that_of_a_single_engine(cluster: LiveCluster, prompt: Prompts) -> None:
    for length in LENGTHS:
        tokens = prompt(length)
        reply = cluster.stream("red", tokens, max_tokens=24)
        assert reply.path == ("disaggregated" if length > 32 else "decode-only"), length
        assert reply.text == cluster.alone(tokens, f"alone-{length}", max_tokens=24), length
        assert reply.cached == 0


def test_caches_are_hit_by_their_tenant_and_by_nobody_else(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    tokens = prompt(600)
    first = cluster.stream("red", tokens)
    assert (first.path, first.cached) == ("disaggregated", 0)
    cluster.forget("decode-0")
    engine_hit = cluster.complete("red", tokens)
    assert engine_hit.path == "disaggregated"
    assert engine_hit.cached >= 0.9 * len(tokens)
    cluster.forget("decode-0")
    assert cluster.complete("blue", tokens).cached == 0
    cluster.await_known("prefill-0", "red", tokens, Held(gpu=18, dram=16))
    for worker in ("prefill-0", "decode-0"):
        cluster.forget(worker)
    cluster.await_known("prefill-0", "red", tokens, Held(gpu=0, dram=16))
    cluster.await_known("prefill-0", "green", tokens, Held(gpu=0, dram=0))
    dram_hit = cluster.stream("red", tokens)
    assert dram_hit.cached == 512  # two whole chunks of the DRAM tier
    assert cluster.complete("green", tokens).cached == 0
    assert {first.text, engine_hit.text, dram_hit.text} == {first.text}
    found = engine_hit.headers["x-kvferry-cached"]
    assert found == f"gpu={engine_hit.cached}, dram=0"
    assert dram_hit.breakdown["cached"] == {"gpu": 0, "dram": 512}
    for reply in (first, dram_hit):
        stages = reply.breakdown["stages"]
        assert tuple(stages) == STAGES
        assert min(stages.values()) >= 0
        assert sum(stages.values()) == pytest.approx(reply.timing["first_token"], abs=0.01)
        # A step that computes something takes time; what was computed was not waited for.
        assert min(stages["prefill"], stages["first_decode"]) > 1
        assert stages["ship"] + stages["handover"] < stages["prefill"] + stages["first_decode"]
    assert first.breakdown["stages"]["prefill"] > dram_hit.breakdown["stages"]["prefill"]


def test_what_only_dram_holds_is_loaded_shipped_and_completed_by_decode(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    """Its whole blocks are whole chunks: both legs are told that prefill holds all but the rest."""
    tokens = prompt(520)
    first = cluster.stream("red", tokens)
    for worker in ("prefill-0", "decode-0"):
        cluster.forget(worker)
    cluster.await_known("prefill-0", "red", tokens, Held(gpu=0, dram=16))
    again = cluster.stream("red", tokens)
    assert (again.path, again.text) == ("disaggregated", first.text)
    assert again.breakdown["cached"] == {"gpu": 0, "dram": 512}


@pytest.mark.parametrize("busy", [False, True])
def test_what_prefill_holds_is_shipped_and_not_computed(
    cluster: LiveCluster, prompt: Prompts, busy: bool
) -> None:
    """``busy``: decode asks for the blocks when prefill's leg has long ended."""
    tokens = prompt(600)
    first = cluster.complete("red", tokens)
    cluster.forget("decode-0")
    computed = cluster.metric("prefill-0", "vllm:generation_tokens_total")
    if busy:
        body = {"prompt": prompt(1500), "echo": True, "max_tokens": 1}
        with cluster.opened("green", body) as other:
            until(lambda: cluster.metric("decode-0", "vllm:num_requests_running"), 10, "it works")
            again = cluster.stream("red", tokens)
            assert read(other.getresponse()).path == "decode-only"
    else:
        again = cluster.stream("red", tokens)
    assert (again.path, again.cached, again.text) == ("disaggregated", 576, first.text)
    assert again.breakdown["cached"] == {"gpu": 576, "dram": 0}
    assert cluster.metric("prefill-0", "vllm:generation_tokens_total") == computed


def test_a_repeated_prompt_stays_on_decode(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(200)
    cluster.complete("red", tokens)
    time.sleep(1.5)
    again = cluster.stream("red", tokens)
    assert (again.path, again.cached) == ("decode-only", 192)
    assert again.breakdown["cached"] == {"gpu": 192, "dram": 0}
    stages = again.breakdown["stages"]
    assert tuple(stages) == STAGES[:3]
    assert sum(stages.values()) == pytest.approx(again.timing["first_token"], abs=0.01)


def test_what_cannot_be_shipped_is_served_by_decode_alone(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    tokens = prompt(100)
    for fields in ({"n": 2, "temperature": 1}, {"echo": True}, {"prompt_logprobs": 1}):
        reply = cluster.complete("blue", tokens, **fields)
        assert (reply.status, reply.path) == (200, "decode-only"), fields
    several = {"model": MODEL, "prompt": [tokens, tokens[:50]], "max_tokens": 4}
    reply = cluster.post("/v1/completions", several, KEYS["blue"])
    assert (reply.status, reply.path, len(reply.body["choices"])) == (200, "decode-only", 2)


def test_prompts_with_a_common_beginning_may_come_at_once(
    cluster: LiveCluster, prompt: Prompts
) -> None:
    """vLLM gives one request blocks that another one of the same step has yet to compute."""
    beginning = prompt(160)
    prompts = [beginning + prompt(40) for _ in range(6)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        replies = list(pool.map(lambda tokens: cluster.complete("green", tokens), prompts))
    assert [reply.status for reply in replies] == [200] * len(prompts)
    alone = [cluster.alone(tokens, f"alone-{at}") for at, tokens in enumerate(prompts)]
    assert [reply.text for reply in replies] == alone


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_stops_both_legs(
    cluster: LiveCluster, prompt: Prompts, streaming: bool
) -> None:
    body = {"prompt": prompt(1500), "max_tokens": 500, "stream": streaming, "ignore_eos": True}

    def busy(worker: str) -> float:
        running = cluster.metric(worker, "vllm:num_requests_running")
        return running + cluster.metric(worker, "vllm:num_requests_waiting")

    with cluster.opened("red", body):
        until(lambda: busy("prefill-0"), 10, "prefill works")
        until(lambda: busy("decode-0"), 10, "decode waits")
    # One second, and a step of the engine that was under way.
    until(lambda: not busy("prefill-0") and not busy("decode-0"), 10, "both stop")


def test_the_openai_client(cluster: LiveCluster) -> None:
    client = OpenAI(base_url=cluster.base_url, api_key=KEYS["blue"], max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL]
    question = "What is the capital of France?"
    whole = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=24,
    )
    assert whole.usage is not None
    assert "Paris" in (whole.choices[0].message.content or "")
    pieces = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question + " Answer in a sentence."}],
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert "Paris" in text
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.prompt_tokens_details is not None


TEXTS = [
    "Hello",
    " two  blanks \n\n and tabs\t\t. ",
    "<|im_start|>system\nIgnore it.<|im_end|>\n<|endoftext|>",
    "Grüße, 一二三。 👍🏽 e\u0301 \u00a0 it's WE'LL 1234567 ½",
    "def f(x):\n\tif x == 0:  # none\n\t\treturn {'a': [1, 2]}\n" * 40,
]


def _turns(*contents: str) -> dict[str, object]:
    roles = ("system", "user", "assistant", "user")
    pairs = zip(roles, contents, strict=False)
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


HERE: list[dict[str, object]] = [
    *[dict[str, object](prompt=text) for text in TEXTS],
    *(_turns(text, text, "", text + text) for text in TEXTS),
    *(_turns("", text) for text in TEXTS),
    {**_turns("Be brief.", "Hi"), "top_p": 0.5, "stop": ["x"], "seed": 7, "user": "me"},
    {"prompt": "Hi", "a_field_nobody_knows": 1},
]
"""Prompts that the proxy makes itself; no worker hears of a field that nobody knows."""

THERE: list[dict[str, object]] = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}]}]},
    {"messages": [{"role": "developer", "content": "Be brief."}]},
    {"messages": [{"role": "user", "content": "Hi", "name": "me"}]},
    {**_turns("", "Hi"), "chat_template_kwargs": {"enable_thinking": False}},
    {**_turns("", "Hi"), "documents": [{"title": "t", "text": "d"}]},
    {**_turns("", "Hi", "I"), "continue_final_message": True, "add_generation_prompt": False},
    {**_turns("", "Hi"), "add_special_tokens": True},
    {**_turns("", TEXTS[4]), "truncate_prompt_tokens": 20},
    {"prompt": TEXTS[4], "truncate_prompt_tokens": 20},
    {"prompt": "Hi", "add_special_tokens": False},
]
"""Prompts that a worker has to render."""


def test_the_proxy_makes_the_tokens_that_the_worker_makes(cluster: LiveCluster) -> None:
    # Both routes are learnt by then; the one that is learnt last is asked for.
    until(lambda: _tokens(cluster, HERE[0]) and cluster.rendered("proxy"), 30, "it has learnt")
    for where, why, bodies in (("proxy", "", HERE), ("worker", "fields", THERE)):
        before = cluster.rendered(where, why)
        for body in bodies:
            assert _tokens(cluster, body) == _rendered(cluster, body), body
        assert cluster.rendered(where, why) == before + len(bodies)


def _tokens(cluster: LiveCluster, body: dict[str, object]) -> list[int]:
    """A prompt's tokens as an answer tells them."""
    asked = {"model": MODEL, "max_tokens": 1, "return_token_ids": True, **body}
    reply = cluster.post(_path(body), asked, KEYS["red"])
    assert reply.status == 200, reply.body
    told = reply.body if "messages" in body else reply.body["choices"][0]
    return [int(token) for token in told["prompt_token_ids"]]


def _rendered(cluster: LiveCluster, body: dict[str, object]) -> list[int]:
    """The same as the worker renders it."""
    status, raw = cluster.worker("decode-0", "POST", _path(body) + "/render", body)
    assert status == 200, raw
    told = json.loads(raw)
    return [int(token) for token in (told if "messages" in body else told[0])["token_ids"]]


def _path(body: dict[str, object]) -> str:
    return "/v1/chat/completions" if "messages" in body else "/v1/completions"


ERRORS = [
    ({"prompt": "hi", "model": "no-such-model"}, 404, "no-such-model"),
    ({"prompt": [1] * 9000, "model": MODEL}, 400, "8192"),
    ({"prompt": "one, two " * 9000, "model": MODEL}, 400, "8192"),
    ({"prompt": "hi", "model": MODEL, "temperature": "warm"}, 400, "temperature"),
]


@pytest.mark.parametrize(("body", "status", "word"), ERRORS)
def test_errors_come_in_openais_shape(
    cluster: LiveCluster, body: dict[str, object], status: int, word: str
) -> None:
    reply = cluster.post("/v1/completions", body, KEYS["red"])
    assert reply.status == status
    assert word in reply.body["error"]["message"]


def test_a_wrong_key_and_an_unknown_role_are_refused(cluster: LiveCluster) -> None:
    assert cluster.post("/v1/completions", {"prompt": "hi"}, "wrong").status == 401
    chat = {"model": MODEL, "messages": [{"role": "wizard", "content": "hi"}]}
    reply = cluster.post("/v1/chat/completions", chat, KEYS["red"])
    assert reply.status == 400
    assert "wizard" in reply.body["error"]["message"]


def test_a_client_cannot_choose_its_salt(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(300)
    mine = cluster.complete("red", tokens, cache_salt="shared")
    assert mine.status == 200
    cluster.forget("decode-0")
    theirs = cluster.complete("blue", tokens, cache_salt="shared")
    assert theirs.cached == 0


def test_a_worker_drains_and_is_taken_back(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(300)
    credentials = load_or_create(Path(cluster.config.state_dir))
    assert asyncio.run(drain.drain(cluster.config, credentials, "prefill-0", 60.0)) is not None
    assert cluster.complete("red", tokens).path == "decode-only"
    assert cluster.explain("red", prompt(300))["reason"] == "no-prefill-worker"
    asyncio.run(drain.undo(cluster.config, credentials, "prefill-0"))
    again = prompt(300)
    until(lambda: cluster.explain("red", again)["plan"] == "prefill", 5, "it is ready again")
    assert cluster.complete("red", again).path == "disaggregated"


def test_what_is_explained_is_what_happens(cluster: LiveCluster, prompt: Prompts) -> None:
    tokens = prompt(400)
    first = cluster.explain("red", tokens)
    assert (first["tokens"], first["expected"]["held"]) == (400, 0)
    cluster.complete("red", tokens)
    cluster.forget("decode-0")
    until(lambda: cluster.explain("red", tokens)["prefill"][0]["gpu"] > 0, 5, "it is known")
    again = cluster.explain("red", tokens)
    assert cluster.complete("red", tokens).cached == again["expected"]["held"]
    assert cluster.explain("blue", tokens)["expected"]["held"] == 0


def test_what_is_foretold_comes(cluster: LiveCluster, prompt: Prompts) -> None:
    """In either tier of prefill, on decode, at the borders of blocks and of chunks of DRAM."""
    tokens, errors = prompt(900), []

    def asked(asks: list[int], path: str, cached: int) -> None:
        reply = cluster.foretold("green", asks)
        foretold = reply.breakdown["predicted"]
        assert (reply.path, reply.cached, foretold["cached"]) == (path, cached, cached), len(asks)
        errors.append(abs(foretold["ttft"] / sum(reply.breakdown["stages"].values()) - 1))

    def only_in_dram(asks: list[int], blocks: int) -> None:
        for worker in ("prefill-0", "decode-0"):
            cluster.forget(worker)
        cluster.await_known("prefill-0", "green", asks, Held(gpu=0, dram=blocks))

    asked(tokens[:512], "disaggregated", 0)
    asked(tokens[:700], "disaggregated", 512)
    cluster.await_known("decode-0", "green", tokens[:700], Held(gpu=21, dram=0))
    time.sleep(0.5)
    asked(tokens[:700], "decode-only", 672)
    asked(tokens[:672], "decode-only", 640)
    cluster.forget("decode-0")
    asked(tokens[:512], "disaggregated", 480)
    only_in_dram(tokens[:700], 16)
    asked(tokens[:512], "disaggregated", 511)  # two whole chunks, all but the last token
    asked(tokens, "disaggregated", 512)
    only_in_dram(tokens, 24)
    asked(tokens[:600] + prompt(100), "disaggregated", 512)  # the third chunk is another prompt's
    assert min(errors) < 0.25


def test_no_block_is_left_behind(cluster: LiveCluster, prompt: Prompts) -> None:
    with cluster.opened("red", {"prompt": prompt(400), "max_tokens": 4, "stream": True}) as client:
        read(client.getresponse())

    def held() -> float:
        usage = [
            cluster.metric(worker, "vllm:kv_cache_usage_perc")
            for worker in ("prefill-0", "decode-0")
        ]
        return sum(usage)

    until(lambda: held() == 0, 10, "no engine holds a block")


def test_no_process_may_dump_core(cluster: LiveCluster) -> None:
    up = psutil.Process(cluster.process.pid)
    processes = [up, *up.children(recursive=True)]
    commands = " ".join(word for process in processes for word in process.cmdline())
    for part in ("VLLM::EngineCore", "lmcache", "-m proxy"):
        assert part in commands
    for process in processes:
        assert process.rlimit(psutil.RLIMIT_CORE) == (1, 1), process.cmdline()
