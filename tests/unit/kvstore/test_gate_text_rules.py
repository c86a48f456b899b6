"""A worker's gate tells proxies, and nobody else, how its engine turns text into tokens."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.errors import WireError
from kvstore.gate import Gate
from kvstore.text_rules import MAX_TEMPLATE_CHARS, TEXT_RULES_PATH, text_rules
from tests.support.tokenizers_of import described, whole

TOKEN = b"cluster-token"


class Engine:
    """What the gate reads of vLLM's application."""

    def __init__(self, template: str | None = "{{ x }}", *, fast: bool = True) -> None:
        self.template = template
        tokenizer = SimpleNamespace(
            special_tokens_map={"bos_token": "<bos>"}, get_chat_template=self.chat_template
        )
        if fast:
            tokenizer.backend_tokenizer = SimpleNamespace(to_str=self.to_str)
        self.renderer = SimpleNamespace(
            use_harmony=False,
            default_chat_template_kwargs={"style": "a"},
            chat_template=None,
            renderer=SimpleNamespace(tokenizer=tokenizer),
        )
        self.written = 0

    def to_str(self) -> str:
        self.written += 1
        text: str = whole("gpt-2").to_str()
        return text

    def chat_template(self, given: str | None) -> str:
        if given is None and self.template is None:
            raise ValueError("no template")
        return given or self.template or ""

    def asked(self, token: bytes = TOKEN, times: int = 1) -> tuple[int, bytes]:
        gate = Gate(self._no_app)
        gate._token, gate._is_open = TOKEN, True
        render = SimpleNamespace(online_renderer=self.renderer)
        scope: dict[str, Any] = {
            "type": "http",
            "path": TEXT_RULES_PATH,
            "headers": [(b"x-kvferry-token", token)],
            "app": SimpleNamespace(state=SimpleNamespace(serving_render=render)),
        }
        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        async def ask() -> None:
            for _ in range(times):
                await gate(scope, self._no_app, send)  # type: ignore[arg-type]

        asyncio.run(ask())
        return sent[-2]["status"], sent[-1]["body"]

    async def _no_app(self, *_: Any) -> None:
        raise AssertionError("not the application's")


def test_what_is_told() -> None:
    engine = Engine()
    status, body = engine.asked(times=3)
    rules = text_rules(body)
    assert (status, engine.written) == (200, 1)
    assert json.loads(bytes(rules.tokenizer)) == json.loads(described("gpt-2"))
    assert rules.variables == {"bos_token": "<bos>", "style": "a"}
    assert rules.chat_template == "{{ x }}"


def test_nothing_is_told_without_the_clusters_token() -> None:
    engine = Engine()
    assert engine.asked(b"other")[0] == 401
    assert engine.written == 0


def test_no_template_is_told_where_one_does_not_make_chats() -> None:
    assert text_rules(Engine(template=None).asked()[1]).chat_template is None
    harmony = Engine()
    harmony.renderer.use_harmony = True
    assert text_rules(harmony.asked()[1]).chat_template is None


def test_the_servers_own_template_goes_before_the_tokenizers() -> None:
    engine = Engine()
    engine.renderer.chat_template = "{{ y }}"
    assert text_rules(engine.asked()[1]).chat_template == "{{ y }}"


def test_another_kind_of_tokenizer_is_not_told() -> None:
    assert Engine(fast=False).asked(times=2)[0] == 404


RULES: dict[str, Any] = {"tokenizer": {}, "variables": {}, "chat_template": None}


@pytest.mark.parametrize(
    "fields",
    [
        {"other": 1},
        {"variables": []},
        {"variables": {str(number): 1 for number in range(65)}},
        {"chat_template": "x" * (MAX_TEMPLATE_CHARS + 1)},
        {"chat_template": 5},
    ],
)
def test_malformed_rules_are_refused(fields: dict[str, Any]) -> None:
    assert text_rules(json.dumps(RULES).encode()).chat_template is None
    with pytest.raises(WireError):
        text_rules(json.dumps({**RULES, **fields}).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        text_rules(raw)
