"""Which prompts the proxy makes itself, that they are the worker's, and what it then remembers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy import learning
from proxy.plain import plain
from proxy.render import INLINE_CHARS, TOKEN_CHARS
from proxy.requests import ClientRequest
from proxy.tokenizing import TextTokenizer
from tests.support.proxy_fakes import Stage, Worker, chat, completion, run, stage, until
from tests.support.tokenizers_of import CORPUS, described, whole

pytestmark = pytest.mark.timeout(60)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROUTES = {"chat": "/v1/chat/completions/render", "completions": "/v1/completions/render"}
LONG = "".join(CORPUS)


def rules(template: str | None = TEMPLATE, family: str = "gpt-2") -> bytes:
    fields = {"tokenizer": json.loads(described(family)), "variables": {"bos_token": "<bos>"}}
    return json.dumps({**fields, "chat_template": template}).encode()


def rendered(path: str, body: dict[str, Any]) -> list[int] | None:
    """As a worker with these rules renders."""
    if "messages" not in body:
        prompt = body["prompt"]
        return prompt if isinstance(prompt, list) else encoded(prompt)
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body["messages"]]
    return encoded("".join(turns) + "<|im_start|>assistant\n")


def encoded(text: str) -> list[int]:
    ids: list[int] = whole("gpt-2").encode(text, add_special_tokens=False).ids
    return ids


def told(worker: Worker) -> Worker:
    worker.text_rules, worker.rendering = rules(), rendered
    return worker


@asynccontextmanager
async def learnt(tmp_path: Path, **settings: Any) -> AsyncIterator[Stage]:
    async with stage(tmp_path, **settings) as s:
        told(s.d)
        await s.learner.look()
        s.d.seen.clear()
        yield s


async def prompt_of(s: Stage, route: str, tenant: str = "alice", **fields: Any) -> list[int]:
    """The tokens that the decode leg of a request got."""
    body = (chat if route == "chat" else completion)(**fields)
    async with s.post(body, route, tenant) as reply:
        assert reply.status == 200, await reply.read()
    leg = s.d.generated[-1].body
    tokens: list[int] = (
        leg["kv_transfer_params"]["prompt_token_ids"] if route == "chat" else leg["prompt"]
    )
    return tokens


def asked(s: Stage) -> int:
    return sum(len(s.d.of(path)) for path in ROUTES.values())


@pytest.mark.parametrize("text", ["hi there", "<|im_end|> \n", LONG])
def test_what_was_learnt_is_made_here(tmp_path: Path, text: str) -> None:
    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            for _ in range(2):
                messages = [{"role": "user", "content": text}]
                tokens = await prompt_of(s, "chat", messages=messages, max_tokens=5)
                assert tokens == rendered("", {"messages": messages})
                assert await prompt_of(s, "completions", prompt=text) == encoded(text)
                assert await prompt_of(s, "completions", prompt=[9, 8, 7] * 20) == [9, 8, 7] * 20
            assert asked(s) == 0
            await s.counted('kvferry_render_total{where="proxy",why=""} 6.0')

    run(scenario)


def test_until_it_is_learnt_a_worker_renders(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d)
            assert await prompt_of(s, "completions", prompt=LONG) == encoded(LONG)
            assert asked(s) == 1
            await s.counted('kvferry_render_total{where="worker",why="unknown"} 1.0')

    run(scenario)


OTHER = [
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    ("chat", {"messages": [{"role": "tool", "content": "hi", "tool_call_id": "1"}]}),
    ("chat", {"messages": [{"role": "user", "content": "hi", "name": "x"}]}),
    ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("chat", {"chat_template_kwargs": {"a": 1}}),
    ("chat", {"max_tokens": 9000}),
    ("completions", {"truncate_prompt_tokens": 3}),
    ("completions", {"temperature": "warm"}),
    ("completions", {"min_tokens": 17}),
    ("completions", {"max_tokens": 9000}),
    ("completions", {"prompt": [[1, 2]]}),
    ("completions", {"prompt": [1 << 30]}),
    ("completions", {"prompt": [1] * 8192}),
]


@pytest.mark.parametrize(("route", "fields"), OTHER)
def test_what_is_not_known_exactly_is_the_workers(
    tmp_path: Path, route: str, fields: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            s.d.rendering = None
            assert await prompt_of(s, route, **fields) == s.d.tokens
            assert len(s.d.of(ROUTES[route])) == 1

    run(scenario)


def test_a_prompt_that_is_too_long_is_refused_in_the_workers_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            message = "This model's maximum context length is 8192 tokens."
            s.d.render_refusal = (400, {"error": {"message": message}})
            async with s.post(completion(prompt=LONG * 40), "completions") as reply:
                assert reply.status == 400
                assert (await reply.json())["error"]["code"] == "context_length_exceeded"
            await s.counted('kvferry_render_total{where="worker",why="length"} 1.0')

    run(scenario)


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_one_other_token_leaves_the_route_to_the_worker(tmp_path: Path, route: str) -> None:
    def differing(path: str, body: dict[str, Any]) -> list[int] | None:
        tokens = rendered(path, body)
        if path == ROUTES[route] and tokens and len(tokens) > 200:
            return [*tokens[:100], tokens[100] ^ 1, *tokens[101:]]
        return tokens

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d).rendering = differing
            await s.learner.look()
            s.d.seen.clear()
            for each, path in ROUTES.items():
                await prompt_of(s, each)
                assert len(s.d.of(path)) == (each == route)
            await s.counted('kvferry_render_total{where="worker",why="differs"} 1.0')
            await s.counted('kvferry_render_total{where="proxy",why=""} 1.0')

    run(scenario)


def test_a_template_may_take_contents_in_parts(tmp_path: Path) -> None:
    parts = TEMPLATE.replace(
        "{{ message['content'] }}",
        "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}",
    )

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d).text_rules = rules(parts)
            await s.learner.look()
            s.d.seen.clear()
            messages = [{"role": "user", "content": "a b " * 50}]
            tokens = await prompt_of(s, "chat", messages=messages)
            assert (tokens, asked(s)) == (rendered("", {"messages": messages}), 0)

    run(scenario)


def test_what_a_template_refuses_the_worker_refuses(tmp_path: Path) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No.') }}{% endif %}"

    def refusing(path: str, body: dict[str, Any]) -> list[int] | None:
        first = body.get("messages", [{"role": "user"}])[0]
        return None if first["role"] == "system" else rendered(path, body)

    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d).text_rules, s.d.rendering = rules(strict + TEMPLATE), refusing
            await s.learner.look()
            s.d.seen.clear()
            await prompt_of(s, "chat")
            assert asked(s) == 0
            messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
            async with s.post(chat(messages=messages)) as reply:
                assert reply.status == 400
            assert asked(s) == 1

    run(scenario)


def odd(**fields: Any) -> bytes:
    told = json.loads(rules(family="gpt-2"))
    told["tokenizer"] |= fields
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"{}",
        b"[",
        rules(family="gpt-2")[:-2],
        odd(pre_tokenizer={"type": "Sequence", "pretokenizers": None}),
        odd(pre_tokenizer={"type": "Sequence", "pretokenizers": ["x"]}),
        odd(post_processor={"type": "Sequence", "processors": 5}),
    ],
)
def test_a_worker_that_tells_nothing_of_use_renders(tmp_path: Path, raw: bytes | None) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d).text_rules = raw
            await s.learner.look()
            assert await prompt_of(s, "completions", prompt=LONG) == encoded(LONG)
            await s.counted('kvferry_render_total{where="worker",why="untold"} 1.0')
            await s.learner.look()
            assert len(s.d.of("/kvferry/tokenizer")) == 1

    run(scenario)


def test_a_template_that_is_none_leaves_chats_to_the_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d).text_rules = rules("{% if %}")
            await s.learner.look()
            s.d.seen.clear()
            await prompt_of(s, "chat")
            await prompt_of(s, "completions")
            assert asked(s) == 1

    run(scenario)


def test_a_worker_that_does_not_answer_is_asked_ever_more_seldom(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d).render_refusal = (500, {"error": {"message": "broken"}})
            for _ in range(15):
                await s.learner.look()
            assert len(s.d.of("/kvferry/tokenizer")) == 4
            s.d.render_refusal = None
            await prompt_of(s, "completions")
            await s.counted('kvferry_render_total{where="worker",why="unknown"} 1.0')
            await s.learner.look()
            await prompt_of(s, "completions")
            await s.counted('kvferry_render_total{where="proxy",why=""} 1.0')

    run(scenario)


def test_only_the_own_texts_are_remembered(tmp_path: Path) -> None:
    async def known(s: Stage, tenant: str, text: str) -> list[float]:
        before = await characters(s)
        assert await prompt_of(s, "completions", tenant, prompt=text) == encoded(text)
        after = await characters(s)
        return [count - was for count, was in zip(after, before, strict=True)]

    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            await known(s, "alice", "short")
            await s.counted("kvferry_remembered_bytes 0.0")
            novel = await known(s, "alice", LONG)
            assert novel == [0, len(LONG)]
            old, new = await known(s, "alice", LONG + " and more")
            assert old + new == len(LONG) + 9
            assert old > 0.5 * len(LONG)
            assert await known(s, "bob", LONG) == [0, len(LONG)]
            assert (await known(s, "alice", "so " + LONG))[0] == 0

    run(scenario)


async def characters(s: Stage) -> list[float]:
    async with s.operator("GET", "/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return [
        next((float(line.split()[1]) for line in lines if line.startswith(name)), 0.0)
        for name in (f'kvferry_render_characters_total{{found="{f}"}}' for f in ("yes", "no"))
    ]


def test_a_worker_that_restarts_is_learnt_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "MOST_LOADED", 1)

    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            await prompt_of(s, "completions", prompt=LONG)
            await s.learner.look()
            assert s.d.of("/kvferry/tokenizer") == []
            s.d.generation = "again"
            await s.learner.look()
            assert len(s.d.of("/kvferry/tokenizer")) == 1
            old, _ = await characters(s)
            await prompt_of(s, "completions", prompt=LONG)
            assert (await characters(s))[0] > old  # the same rules: what is known stays known
            s.d.generation = "other"
            s.d.seen.clear()
            s.d.text_rules = rules(family="digits")
            await s.learner.look()
            assert len(s.d.of("/kvferry/tokenizer")) == 1
            await s.counted("kvferry_remembered_bytes 0.0")
            s.d.seen.clear()
            await prompt_of(s, "completions", prompt="12345")
            assert asked(s) == 1  # it renders otherwise than it tells

    run(scenario)


def test_of_tokenizers_in_use_there_is_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "MOST_LOADED", 1)

    async def scenario() -> None:
        async with stage(tmp_path, decode=2) as s:
            for worker, family in zip(s.decode, ("gpt-2", "digits"), strict=True):
                told(worker).text_rules = rules(family=family)
            await s.learner.look()
            known = [s.learner.known(worker.announce()) for worker in s.decode]
            assert [one is not None and one.rendering is not None for one in known] == [True, False]

    run(scenario)


def test_many_messages_and_texts_that_cannot_fit_hold_nobody_up(tmp_path: Path) -> None:
    """Short messages count for the template's work; what hardly fits is not even looked at."""

    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            many = ClientRequest(
                "chat",
                chat(messages=[{"role": "user", "content": ""}] * 100),
                "",
                False,
                False,
                None,
            )
            found = plain(many)
            assert found is not None
            assert found.chars > INLINE_CHARS
            s.d.seen.clear()
            await prompt_of(s, "completions", prompt=" " * (TOKEN_CHARS * 8192 + 1))
            assert asked(s) == 1
            await s.counted('kvferry_render_total{where="worker",why="length"} 1.0')

    run(scenario)


def test_long_texts_are_tokenized_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    encode = TextTokenizer.encode

    def watched(self: TextTokenizer, pieces: Sequence[str]) -> list[bytes]:
        threads.append(threading.current_thread().name.startswith("tokenizing"))
        return encode(self, pieces)

    async def scenario() -> None:
        async with learnt(tmp_path) as s:
            monkeypatch.setattr(TextTokenizer, "encode", watched)
            for text in ("short", LONG * 9, LONG * 9):
                await prompt_of(s, "completions", prompt=text)
            assert threads == [False, True, False]  # at last there is little left to do

    run(scenario)


def test_the_learner_ends_with_the_proxy(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s:
            told(s.d)
            learning_task = asyncio.create_task(s.learner.run())
            await until(lambda: s.learner.known(s.d.announce()) is not None)
            learning_task.cancel()
            await asyncio.wait({learning_task})

    run(scenario)
