"""What the proxy renders without asking is nothing that vLLM would refuse or render otherwise."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from kvstore.errors import ApiError
from proxy import plain as plain_module
from proxy.plain import Plain, plain
from proxy.requests import Route, parse

REQUESTS: dict[Route, Any] = {"chat": ChatCompletionRequest, "completions": CompletionRequest}
FIELDS: dict[Route, Any] = {"chat": plain_module._Chat, "completions": plain_module._Completion}
PROMPTS: dict[Route, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "completions": {"prompt": "hi"},
}

GENERATION_ONLY = {
    "frequency_penalty", "ignore_eos", "max_completion_tokens", "max_tokens", "min_p", "min_tokens",
    "model", "n", "presence_penalty", "repetition_penalty", "return_token_ids", "seed", "stop",
    "stream", "stream_options", "temperature", "top_k", "top_p", "user",
}  # fmt: skip
"""Fields of vLLM 0.32 that were read to change no prompt."""

NUMBERS = st.one_of(
    st.none(), st.integers(-5, 20), st.floats(-3, 3), st.just(1 << 31), st.just(1 << 63)
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "frequency_penalty": NUMBERS,
    "ignore_eos": st.sampled_from([True, False, None, "yes"]),
    "max_tokens": NUMBERS,
    "max_completion_tokens": NUMBERS,
    "min_p": NUMBERS,
    "min_tokens": NUMBERS,
    "n": NUMBERS,
    "presence_penalty": NUMBERS,
    "repetition_penalty": NUMBERS,
    "return_token_ids": st.sampled_from([True, False, None, 3]),
    "seed": NUMBERS,
    "stop": st.one_of(st.none(), st.text(max_size=2), st.lists(st.text(max_size=2), max_size=6)),
    "stream": st.sampled_from([True, False, None]),
    "stream_options": st.sampled_from([None, {}, {"include_usage": True}, {"other": 1}]),
    "temperature": NUMBERS,
    "top_k": NUMBERS,
    "top_p": NUMBERS,
    "user": st.sampled_from([None, "me"]),
}


def of(route: Route, **fields: Any) -> Plain | None:
    return plain(parse(route, msgspec.json.encode({**PROMPTS[route], **fields})))


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_the_fields_are_those_that_were_read(route: Route) -> None:
    known = {field.name for field in msgspec.structs.fields(FIELDS[route])}
    assert known - {"messages", "prompt"} <= GENERATION_ONLY
    assert known <= set(REQUESTS[route].model_fields)
    message = {field.name for field in msgspec.structs.fields(plain_module._Message)}
    assert message == {"role", "content"}


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_every_other_field_of_vllms_goes_to_a_worker(route: Route) -> None:
    others = set(REQUESTS[route].model_fields) - GENERATION_ONLY - {"messages", "prompt"}
    assert len(others) > 15
    for name in others:
        parsed = parse(route, msgspec.json.encode({**PROMPTS[route], name: None}))
        if name in parsed.body:  # else it never reaches any worker
            assert plain(parsed) is None, name


@pytest.mark.parametrize("route", ["chat", "completions"])
@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_vllm_takes_what_is_rendered_here(route: Route, data: st.DataObject) -> None:
    names = sorted({field.name for field in msgspec.structs.fields(FIELDS[route])} & set(VALUES))
    chosen = data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    fields = {name: data.draw(VALUES[name], name) for name in chosen}
    try:
        prompt = of(route, **fields)
    except ApiError:  # nobody is asked
        return
    if prompt is None or not prompt.fits(10, 8192):
        return
    body = {**PROMPTS[route], **fields}
    request = REQUESTS[route].model_validate(body)
    asked = request.max_tokens
    if route == "chat" and request.max_completion_tokens is not None:
        asked = request.max_completion_tokens
    most = min(8192 - 10, asked) if asked is not None else 8192 - 10
    request.to_sampling_params(most, {})
    for name in set(fields) - {"stream_options"}:
        assert fields[name] is None or getattr(request, name) == fields[name]


def test_as_many_tokens_as_are_asked_for_must_be_allowed() -> None:
    assert of("completions", min_tokens=16) is not None
    assert of("completions", min_tokens=17) is None
    assert of("chat", min_tokens=4, max_tokens=4) is not None
    assert of("chat", min_tokens=5, max_tokens=4) is None
    assert of("chat", min_tokens=5, max_tokens=9, max_completion_tokens=4) is None
    prompt = of("chat", min_tokens=5)
    assert prompt is not None
    assert [prompt.fits(tokens, 100) for tokens in (94, 95, 96)] == [True, True, False]


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_usual_requests_are_rendered_here(route: Route) -> None:
    assert of(route) == of(route, stream=True, stream_options={"include_usage": True})
    assert of(route, model="m", temperature=0.7, max_tokens=64, top_p=0.9, stop=["\n"], seed=1)
    assert of(route, n=1, user="me", frequency_penalty=0, presence_penalty=0.5, top_k=40, min_p=0)
