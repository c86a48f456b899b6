"""Parsing a client's body, and the bodies of the legs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import ApiError
from kvstore.handoff import DecodeTicket, PrefillTicket, decode_ticket, prefill_ticket
from proxy import legs
from proxy.parts import ROLES
from proxy.requests import Asides, ClientRequest, Route, parse

TOKENS = msgspec.Raw(b"[5,6,7]")
TICKET = DecodeTicket("a" * 32, 1000, "zmq+ipc:///x", "gen")
USER = [{"role": "user", "content": "hi"}]


def parsed(route: Route = "chat", **fields: Any) -> ClientRequest:
    body = {"messages": USER} if route == "chat" else {"prompt": "hi"}
    return parse(route, msgspec.json.encode({**body, **fields}))


def refusal(route: Route, raw: bytes) -> int | None:
    """The status with which ``raw`` is refused, if it is."""
    try:
        parse(route, raw)
    except ApiError as error:
        return error.status
    return None


def refused(*asides: str | None, **fields: Any) -> str | None:
    """The parameter because of which a completion with ``fields`` is refused."""
    raw = msgspec.json.encode({"prompt": "hi", **fields})
    with pytest.raises(ApiError) as error:
        parse("completions", raw, Asides(*asides))
    assert error.value.status == 400
    return error.value.param


def test_a_hint_is_read_from_the_body_or_else_from_the_header() -> None:
    raw = msgspec.json.encode({"prompt": "hi", "prompt_cache_key": "a"})
    assert parse("completions", raw, Asides("b")).hint == "a"
    bare = msgspec.json.encode({"prompt": "hi", "prompt_cache_key": None})
    assert parse("completions", bare, Asides("b")).hint == "b"
    assert parse("completions", bare, Asides("")).hint is None
    assert parsed(prompt_cache_key="é" * 256).hint == "é" * 256


@pytest.mark.parametrize("key", [1, True, ["a"], {"a": 1}, "x" * 257])
def test_a_hint_that_is_none_is_refused_by_its_name(key: object) -> None:
    assert refused(prompt_cache_key=key) == "prompt_cache_key"


def test_a_header_that_is_too_long_is_refused_by_its_name() -> None:
    assert refused("x" * 257) == "x-session-affinity"
    assert refused(None, "x" * 257) == "x-prompt-cache-isolation-key"


def test_a_sub_scope_is_read_from_the_body_or_else_from_the_header() -> None:
    raw = msgspec.json.encode({"prompt": "hi", "prompt_cache_isolation_key": "a"})
    assert parse("completions", raw, Asides(None, "b")).sub_scope == "a"
    bare = msgspec.json.encode({"prompt": "hi", "prompt_cache_isolation_key": None})
    assert parse("completions", bare, Asides(None, "b")).sub_scope == "b"
    assert parse("completions", bare).sub_scope == ""
    widest = parsed(prompt_cache_isolation_key="é" * 256)
    assert widest.sub_scope == "é" * 256
    assert "prompt_cache_isolation_key" not in widest.body


@pytest.mark.parametrize("key", ["", 0, True, ["a"], {"a": 1}, "x" * 257])
def test_a_sub_scope_that_is_none_is_refused_by_its_name(key: object) -> None:
    assert refused(None, "a", prompt_cache_isolation_key=key) == "prompt_cache_isolation_key"


def test_an_empty_header_is_no_sub_scope() -> None:
    assert refused(None, "") == "x-prompt-cache-isolation-key"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (None, True),
        ("", True),
        ("no-cache", True),
        ("no-store", False),
        ("No-STORE", False),
        ("max-age=0, no-store ,no-cache", False),
        ("max-age=0,\tno-store", False),
        ("no-store=x", False),
        ("no-stored, xno-store", True),
        ('private="a, no-store, b"', True),
        ('private="a\\", no-store", x', True),
        ('private="a", no-store', False),
        ('broken", no-store', False),
    ],
)
def test_no_store_is_read_from_the_header(header: str | None, kept: bool) -> None:
    asides = Asides(cache_control=header)
    assert parse("completions", b'{"prompt": "hi"}', asides).kept is kept
    # What one of the two says the other does not take back.
    assert parse("completions", b'{"prompt": "hi", "no_store": false}', asides).kept is kept
    assert not parse("completions", b'{"prompt": "hi", "no_store": true}', asides).kept


@pytest.mark.parametrize("given", [1, 0, "true", "no-store", [], {}])
def test_no_store_that_is_neither_true_nor_false_is_refused_by_its_name(given: object) -> None:
    assert refused(no_store=given) == "no_store"


def test_what_only_shapes_the_answer_is_kept() -> None:
    extra: dict[str, Any] = {
        "temperature": 0.25,
        "seed": 1 << 62,
        "documents": [{"a": "b"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert parsed(**extra).body == {"messages": USER, **extra}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_known_roles(role: str) -> None:
    assert parsed(messages=[{"role": role, "content": "x"}]).alone is None


@pytest.mark.parametrize(
    ("parts", "alone"),
    [
        ([{"type": "text", "text": "a"}], None),
        (["a"], None),
        ([{"text": "a"}], None),
        ([{"type": "refusal", "refusal": "a"}], None),
        ([{"type": "text", "text": "a", "cache_control": {}}], None),
        ([{"type": "image_url", "image_url": {"url": "data:;base64,"}}], "non-text"),
        ([{"type": "text", "image_url": "data:;base64,"}], "non-text"),
        ([{"type": "input_audio", "input_audio": {}}], "non-text"),
        ([{"type": "text", "text": "a"}, {"type": "video_url"}], "non-text"),
    ],
)
def test_content_parts(parts: list[object], alone: str | None) -> None:
    assert parsed(messages=[{"role": "user", "content": parts}]).alone == alone


@pytest.mark.parametrize(
    ("prompt", "alone"),
    [
        ("a", None),
        (["a"], None),
        ([1, 2], None),
        ([[1, 2]], None),
        (["a", "b"], "multi-prompt"),
        ([[1], [2]], "multi-prompt"),
        ([1, "a"], None),  # for vLLM to refuse
        ([], None),
        (None, None),
    ],
)
def test_prompts(prompt: object, alone: str | None) -> None:
    assert parsed("completions", prompt=prompt).alone == alone


@pytest.mark.parametrize(
    ("fields", "alone"),
    [
        ({"n": 1, "best_of": 2, "echo": False}, None),  # vLLM knows no best_of
        ({"n": 2}, "n"),
        ({"n": 2, "use_beam_search": True}, "beam-search"),
        ({"prompt_logprobs": 0}, "prompt-logprobs"),
        ({"echo": True}, "echo"),
        ({"use_beam_search": True}, "beam-search"),
    ],
)
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_alone(route: Route, fields: dict[str, Any], alone: str | None) -> None:
    assert parsed(route, **fields).alone == alone


def test_a_prompts_text_is_only_to_be_had_of_a_chat() -> None:
    assert parsed("chat", return_prompt_text=True).alone == "prompt-text"
    assert parsed("completions", return_prompt_text=True).alone is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(raw: bytes) -> None:
    assert refusal("chat", raw) in {None, 400}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = [
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "n",
    "echo",
    "content",
    "structured_outputs",
    "response_format",
    "tools",
    "logit_bias",
    "repetition_detection",
    "no_store",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from(["chat", "completions"]))
def test_any_fields_are_a_request_or_refused(fields: dict[str, Any], route: Route) -> None:
    assert refusal(route, msgspec.json.encode(fields)) in {None, 400}


def test_prefill_leg_carries_nothing_of_the_clients() -> None:
    body = legs.prefill_body("m", TOKENS, "salt", PrefillTicket("a" * 32, 1000))
    assert set(body) == {
        "model",
        "prompt",
        "max_tokens",
        "temperature",
        "stream",
        "cache_salt",
        "kv_transfer_params",
    }
    assert prefill_ticket(body["kv_transfer_params"]) == PrefillTicket("a" * 32, 1000)


def test_decode_leg_of_a_chat() -> None:
    request = parsed(temperature=0.5)
    body = legs.decode_body(request, "salt", TOKENS, TICKET)
    params = body.pop("kv_transfer_params")
    assert decode_ticket(params) == TICKET
    assert params["prompt_token_ids"] == TOKENS
    assert body == {"messages": USER, "temperature": 0.5, "cache_salt": "salt"}
    assert "cache_salt" not in request.body


def test_decode_leg_of_a_completion_has_its_prompt_in_tokens() -> None:
    request = parsed("completions", truncate_prompt_tokens=3, truncation_side="left", suffix="x")
    body = legs.decode_body(request, "salt", TOKENS, TICKET)
    assert decode_ticket(body.pop("kv_transfer_params")) == TICKET
    assert body == {"prompt": TOKENS, "cache_salt": "salt"}
    alone = legs.decode_body(request, "salt", TOKENS, None)
    assert alone == {"prompt": TOKENS, "cache_salt": "salt"}


def test_decode_leg_that_was_not_rendered_is_the_clients_own() -> None:
    request = parsed("completions", n=2, suffix="x", store=True)
    assert legs.decode_body(request, "s", None, None) == {**request.body, "cache_salt": "s"}


@pytest.mark.parametrize(
    ("theirs", "sent"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}),
        (
            {"include_usage": True, "continuous_usage_stats": True},
            {"include_usage": True, "continuous_usage_stats": True},
        ),
    ],
)
def test_a_stream_always_reports_usage(theirs: object, sent: object) -> None:
    request = parsed(stream=True, stream_options=theirs)
    body = legs.decode_body(request, "s", TOKENS, None)
    assert body["stream_options"] == sent
    assert request.body["stream_options"] == theirs


def test_of_a_streams_options_only_known_ones_are_kept() -> None:
    request = parsed(stream=True, stream_options={"include_obfuscation": True, "x": 1})
    assert request.body["stream_options"] == {}


def test_without_a_stream_the_options_are_the_clients() -> None:
    request = parsed(stream_options={"include_usage": True})
    body = legs.decode_body(request, "s", TOKENS, None)
    assert body["stream_options"] == {"include_usage": True}


def test_length_body() -> None:
    chat = parsed(model="m", tools=[], temperature=1, chat_template_kwargs={})
    asked = legs.length_body(chat)
    assert asked == {"model": "m", "messages": USER, "tools": [], "chat_template_kwargs": {}}
    assert legs.length_body(parsed("completions")) == {"prompt": "hi"}
    assert legs.length_body(parsed("completions", prompt=[1])) is None
