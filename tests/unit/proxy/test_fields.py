"""Field by field: what a client may say, and that nothing else gets beyond parsing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kvstore.errors import ApiError
from proxy import fields
from proxy.fields import Bounded, Dropped, Passed, Refused
from proxy.requests import MOST_SEQUENCES, Route, parse
from tests.support.steering import BOUNDED, DROPPED, REFUSED, UNKNOWN

ROUTES: dict[Route, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "completions": {"prompt": "hi"},
}
TABLES = {"chat": fields.CHAT, "completions": fields.COMPLETIONS}
BOTH = pytest.mark.parametrize("route", ROUTES)


def body(route: Route, **given: Any) -> dict[str, Any]:
    return parse(route, msgspec.json.encode({**ROUTES[route], **given})).body


def refused(route: Route, **given: Any) -> str | None:
    """The parameter that is named."""
    with pytest.raises(ApiError) as error:
        body(route, **given)
    assert error.value.status == 400
    return error.value.param


def of(kind: type[object]) -> set[str]:
    return {name for table in TABLES.values() for name, fate in table.items() if type(fate) is kind}


def test_there_is_a_case_for_every_field() -> None:
    assert set(DROPPED) == of(Dropped)
    assert set(BOUNDED) == of(Bounded)
    assert {name for names in REFUSED.values() for name in names} == of(Refused)
    assert not set(UNKNOWN) & (fields.CHAT.keys() | fields.COMPLETIONS.keys())


@BOTH
@pytest.mark.parametrize("field", DROPPED | UNKNOWN)
def test_dropped(field: str, route: Route) -> None:
    assert body(route, **{field: (DROPPED | UNKNOWN)[field]}) == ROUTES[route]


@pytest.mark.parametrize(
    ("route", "field"), [(route, name) for route, names in REFUSED.items() for name in names]
)
def test_refused(route: Route, field: str) -> None:
    assert refused(route, **{field: REFUSED[route][field]}) == field
    empty: tuple[Any, ...] = (None, "", {}, [])
    for nothing in empty:
        assert field not in body(route, **{field: nothing})


@pytest.mark.parametrize(
    ("route", "field"),
    [(route, name) for name in BOUNDED for route, table in TABLES.items() if name in table],
)
def test_bounded(route: Route, field: str) -> None:
    for value in BOUNDED[field]:
        assert refused(route, **{field: value}) == field, str(value)[:80]
    if field != "prompt":
        assert body(route, **{field: None}) == {**ROUTES[route], field: None}


WITHIN: dict[str, list[Any]] = {
    "n": [1, 128, 2.0],
    "max_tokens": [16, -1, 100.0],
    "stop": ["a", ["a"] * 4, []],
    "logit_bias": [{"50256": -100, "0": 0.5}],
    "bad_words": [["a b"] * 128],
    "repetition_detection": [{"max_pattern_size": 20, "min_count": 3}],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "structured_outputs": [{"choice": ["a", "b"]}, {"regex": "[a-z]+"}, {"json": '{"type": "x"}'}],
    "stream_interval": [1],
    "top_k": [-1, 0, 50],
}


@BOTH
@pytest.mark.parametrize("field", WITHIN)
def test_within_bounds(field: str, route: Route) -> None:
    for value in WITHIN[field]:
        assert body(route, **{field: value})[field] == value


def test_within_bounds_of_a_chat_only() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"pattern": "a" * 512}}}
    for _ in range(60):
        schema = {"items": schema}
    given = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "chat_template_kwargs": {"enable_thinking": False},
        "prompt_logprobs": 1,
    }
    assert body("chat", **given) == {**ROUTES["chat"], **given}


@BOTH
@pytest.mark.parametrize("field", sorted(of(Passed) - {"messages", "prompt", "stream_options"}))
def test_numbers_of_no_known_size_are_refused_anywhere(field: str, route: Route) -> None:
    if field in TABLES[route]:
        assert refused(route, **{field: 1 << 63}) == field
        assert refused(route, **{field: {"a": [-(1 << 63) - 1]}}) == field


def test_answers_are_bounded_over_all_prompts() -> None:
    prompts = ["a"] * 128
    assert body("completions", prompt=prompts, n=MOST_SEQUENCES // 128)["prompt"] == prompts
    assert refused("completions", prompt=prompts, n=MOST_SEQUENCES // 128 + 1) == "n"
