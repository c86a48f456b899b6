"""A stub worker answers both kinds of routers, whichever leg comes first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bench.routing.holdings import Holding
from bench.routing.rendering import Renderer
from bench.routing.tally import TALLY, Tally
from bench.routing.worker import Asker, Computing, Host, Worker
from kvstore.blockhash import block_chain, block_names
from kvstore.curves import PrefillCurve
from kvstore.handoff import DecodeTicket, LocalTicket, PrefillTicket, to_params
from kvstore.messages import Role

TOKEN = "the cluster's own"
TRANSFER = "0a" * 16
PROMPT = list(range(40))
SALT = "5a" * 32
NAMES = tuple(block_names(block_chain(PROMPT, 16, SALT)))
Heard = list[tuple[Role, tuple[bytes, ...]]]


class FakeRenderer:
    rules = b'{"chat_template":null}'

    def rendered(self, chat: bool, body: bytes) -> bytes:
        return b'{"token_ids":[1]}'


class Feed:
    def __init__(self, role: Role, heard: Heard) -> None:
        self._role = role
        self._heard = heard

    def changed(self, added: tuple[bytes, ...], gone: tuple[bytes, ...]) -> None:
        self._heard.append((self._role, added))


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.gone = False

    def is_closing(self) -> bool:
        return self.gone

    def write(self, content: bytes) -> None:
        assert not self.gone
        self.written += content

    def close(self) -> None: ...


class World:
    """A prefill and a decode worker of one host."""

    def __init__(self, computing: Computing | None = None) -> None:
        self.heard: Heard = []
        renderer: Any = FakeRenderer()
        self._host = Host("stub", 3, 16, TOKEN, renderer, computing)
        self._workers = {role: self._worker(role) for role in ("prefill", "decode")}

    def ask(self, role: Role, path: str, body: object, *headers: str) -> Wire:
        asker, wire = Asker(self._workers[role]), Wire()
        transport: Any = wire
        asker.connection_made(transport)
        content = msgspec.json.encode(body)
        lines = [f"POST {path} HTTP/1.1", f"content-length: {len(content)}", *headers]
        asker.data_received("\r\n".join([*lines, "", ""]).encode() + content)
        return wire

    def _worker(self, role: Role) -> Worker:
        feed: Any = Feed(role, self.heard)
        return Worker(role, self._host, feed, Holding(100))


def in_a_loop(script: Callable[[World], Any], computing: Computing | None = None) -> None:
    async def run() -> None:
        await script(World(computing))

    asyncio.run(run())


def prefill_leg(world: World, held: int = 0) -> Wire:
    body = {
        "prompt": PROMPT,
        "cache_salt": SALT,
        "kv_transfer_params": to_params(PrefillTicket(TRANSFER, 1000, held)),
    }
    return world.ask(
        "prefill",
        "/v1/completions",
        body,
        f"x-kvferry-token: {TOKEN}",
        f"x-kvferry-transfer: {TRANSFER}",
    )


def decode_leg(world: World, ticket: DecodeTicket | LocalTicket | None = None) -> Wire:
    ticket = ticket or DecodeTicket(TRANSFER, 1000, "auto://127.0.0.1:1", "1")
    params = {**to_params(ticket), "prompt_token_ids": PROMPT}
    body = {"messages": [], "cache_salt": SALT, "kv_transfer_params": params}
    return world.ask(
        "decode",
        "/v1/chat/completions",
        body,
        f"x-kvferry-token: {TOKEN}",
        f"x-kvferry-transfer: {TRANSFER}",
    )


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("first", ["prefill", "decode"])
def test_decode_answers_when_both_legs_have_come(first: str) -> None:
    async def script(world: World) -> None:
        if first == "decode":
            decode = decode_leg(world)
            await turns()
            assert not decode.written
            prefill_leg(world)
        else:
            prefill_leg(world)
            await turns()
            decode = decode_leg(world)
        await turns()
        assert b'"shipped":true' in decode.written
        assert TRANSFER.encode() in decode.written
        assert decode.written.count(b'"content":" w') == 3
        assert decode.written.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert sorted(world.heard) == [("decode", NAMES), ("prefill", NAMES)]

    in_a_loop(script)


def test_an_abandoned_decode_leg_waits_no_more() -> None:
    async def script(world: World) -> None:
        decode = decode_leg(world)
        world.ask("decode", f"/kvferry/abandon/{TRANSFER}", {}, f"x-kvferry-token: {TOKEN}")
        await turns()
        assert b'"reason":"abandoned"' in decode.written
        assert b"[DONE]" in decode.written

    in_a_loop(script)


def test_decode_alone_tells_no_outcome_and_holds_the_prompt() -> None:
    async def script(world: World) -> None:
        decode = decode_leg(world, LocalTicket(TRANSFER))
        await turns()
        assert b"x-kvferry-times" in decode.written
        assert b"x-kvferry-outcome" not in decode.written
        assert world.heard == [("decode", NAMES)]

    in_a_loop(script)


def test_prefill_tells_what_the_proxy_says_it_holds() -> None:
    async def script(world: World) -> None:
        written = prefill_leg(world, held=32).written
        await turns()
        answer = msgspec.json.decode(written.partition(b"\r\n\r\n")[2])
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 32
        assert answer["kv_transfer_params"]["kvferry"]["gpu_tokens"] == 32

    in_a_loop(script)


def computing() -> Computing:
    return Computing(PrefillCurve(5.0, 0.0, 0.0), Tally([Holding(100)], random.Random(0)))


class Timers:
    """Of the running loop: nothing is waited for, only noted."""

    def __init__(self) -> None:
        self._noted: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []
        loop: Any = asyncio.get_running_loop()
        loop.call_later = lambda after, call, *args: self._noted.append((after, call, args))

    def fire(self) -> list[float]:
        """All of them; the seconds after which each would have been."""
        noted, self._noted = self._noted, []
        for _, call, args in noted:
            call(*args)
        return [after for after, _, _ in noted]


def body(answer: Wire) -> Any:
    return msgspec.json.decode(answer.written.partition(b"\r\n\r\n")[2])


def test_who_computes_tells_what_it_really_held() -> None:
    async def script(world: World) -> None:
        timers = Timers()
        first, decode = prefill_leg(world, held=32), decode_leg(world)
        await turns()
        assert not first.written
        assert not decode.written
        timers.fire()
        await turns()
        assert body(first)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert body(first)["kv_transfer_params"]["kvferry"]["prefill_ms"] == 5000.0
        assert b'"shipped":true' in decode.written
        again, alone = prefill_leg(world), decode_leg(world, LocalTicket("0b" * 16))
        assert not alone.written
        timers.fire()
        await turns()
        assert body(again)["usage"]["prompt_tokens_details"]["cached_tokens"] == 32
        assert b"x-kvferry-times" in alone.written
        counts = body(world.ask("decode", TALLY, {}))
        assert (counts["prompts"], counts["tokens"]) == (3, 120)
        assert (counts["cached"], counts["blind"]) == (64, 64)

    in_a_loop(script, computing())


def test_prompts_are_computed_one_after_the_other() -> None:
    async def script(world: World) -> None:
        timers = Timers()
        prefill_leg(world)
        prefill_leg(world)
        assert timers.fire() == [pytest.approx(5.0, abs=0.5), pytest.approx(10.0, abs=0.5)]

    in_a_loop(script, computing())


def test_a_router_that_is_gone_is_told_nothing() -> None:
    async def script(world: World) -> None:
        timers = Timers()
        answer = prefill_leg(world)
        answer.gone = True
        timers.fire()
        assert world.heard == [("prefill", NAMES)]

    in_a_loop(script, computing())


def test_another_router_gets_two_plain_legs_and_no_rendering() -> None:
    async def script(world: World) -> None:
        chat = {"messages": [{"role": "user", "content": "a"}]}
        prefill = world.ask("prefill", "/v1/chat/completions", chat)
        assert b'"do_remote_prefill":true' in prefill.written
        decode = world.ask("decode", "/v1/chat/completions", chat)
        await turns()
        assert b"[DONE]" in decode.written
        assert b"x-kvferry" not in decode.written
        render = world.ask("prefill", "/v1/chat/completions/render", chat)
        assert render.written.startswith(b"HTTP/1.1 403")
        assert not world.heard

    in_a_loop(script)


def test_kvferry_gets_tokens() -> None:
    async def script(world: World) -> None:
        told = f"x-kvferry-token: {TOKEN}"
        render = world.ask("decode", "/v1/chat/completions/render", {}, told)
        assert b'"token_ids"' in render.written
        rules = world.ask("decode", "/kvferry/tokenizer", {}, told)
        assert rules.written.endswith(FakeRenderer.rules)
        assert world.ask("decode", "/kvferry/tokenizer", {}).written.startswith(b"HTTP/1.1 404")

    in_a_loop(script)


def test_prompts_are_rendered_by_the_models_template(tmp_path: Path) -> None:
    words = ["<s>", "user", "hello", ":", "[?]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[?]"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "other": 1}')
    renderer = Renderer(tmp_path)
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "hello"}], "model": "x"})
    assert msgspec.json.decode(renderer.rendered(True, body)) == {"token_ids": [0, 1, 3, 2]}
    completion = msgspec.json.encode({"prompt": "hello"})
    assert msgspec.json.decode(renderer.rendered(False, completion)) == [{"token_ids": [2]}]
    tokens = msgspec.json.encode({"prompt": [5, 6]})
    assert msgspec.json.decode(renderer.rendered(False, tokens)) == [{"token_ids": [5, 6]}]
    rules = msgspec.json.decode(renderer.rules)
    assert rules["chat_template"] == source
    assert rules["variables"] == {"bos_token": "<s>"}
    assert rules["tokenizer"]["model"]["type"] == "WordLevel"
