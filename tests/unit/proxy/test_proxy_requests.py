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
from proxy.requests import DROPPED, ROLES, ClientRequest, Route, parse

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


@pytest.mark.parametrize("field", sorted(DROPPED))
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_dropped(field: str, route: Route) -> None:
    assert field not in parsed(route, **{field: "x"}).body


def test_a_hint_is_read_from_the_body_or_else_from_the_header() -> None:
    raw = msgspec.json.encode({"prompt": "hi", "prompt_cache_key": "a"})
    assert parse("completions", raw, "b").hint == "a"
    bare = msgspec.json.encode({"prompt": "hi", "prompt_cache_key": None})
    assert parse("completions", bare, "b").hint == "b"
    assert parse("completions", bare, "").hint is None
    assert parsed(prompt_cache_key="é" * 256).hint == "é" * 256


@pytest.mark.parametrize("key", [1, True, ["a"], {"a": 1}, "x" * 257])
def test_a_hint_that_is_none_is_refused_by_its_name(key: object) -> None:
    with pytest.raises(ApiError) as refused:
        parsed(prompt_cache_key=key)
    assert (refused.value.status, refused.value.param) == (400, "prompt_cache_key")


def test_a_header_that_is_too_long_is_refused_by_its_name() -> None:
    with pytest.raises(ApiError) as refused:
        parse("completions", b'{"prompt": "hi"}', "x" * 257)
    assert (refused.value.status, refused.value.param) == (400, "x-session-affinity")


def test_everything_else_is_kept() -> None:
    extra: dict[str, Any] = {
        "temperature": 0.25,
        "seed": 1 << 70,
        "anything": [{"a": None}],
        "user": "u",
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
        ([{"type": "image_url", "image_url": {}}], "non-text"),
        ([{"type": "text", "image_url": "x"}], "non-text"),
        ([{"type": "input_audio", "input_audio": {}}], "non-text"),
        ([{"type": ["text"]}], "non-text"),
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
        ([], None),
        (None, None),
    ],
)
def test_prompts(prompt: object, alone: str | None) -> None:
    assert parsed("completions", prompt=prompt).alone == alone


@pytest.mark.parametrize(
    ("fields", "alone"),
    [
        ({"n": 1, "best_of": 1, "echo": False}, None),
        ({"n": 2}, "n"),
        ({"n": "2"}, "n"),
        ({"best_of": 2}, "n"),
        ({"prompt_logprobs": 0}, "prompt-logprobs"),
        ({"echo": True}, "echo"),
        ({"use_beam_search": True}, "beam-search"),
        ({"return_prompt_text": True}, "prompt-text"),
    ],
)
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_alone(route: Route, fields: dict[str, Any], alone: str | None) -> None:
    assert parsed(route, **fields).alone == alone


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(raw: bytes) -> None:
    assert refusal("chat", raw) in {None, 400}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = ["model", "messages", "prompt", "stream", "stream_options", "n", "echo", "content"]


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
    request = parsed("completions", n=2, suffix="x")
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
