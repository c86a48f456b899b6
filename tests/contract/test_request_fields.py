"""Every field of the installed vLLM's requests is judged, and what passes does not fail it."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PythonBackend
from vllm import envs
from vllm.connections import HTTPConnection
from vllm.entrypoints.generate.base.protocol import StreamOptions
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.multimodal.media.connector import MediaConnector
from vllm.renderers.chat_utils import (
    _KNOWN_CONTENT_PART_FIELDS,
    MM_PARSER_MAP,
    TEXT_PART_TYPES,
    _parse_chat_message_content_mm_part,
)
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams
from vllm.utils.argparse_utils import FlexibleArgumentParser

from kvstore.errors import ApiError
from kvstore.launch import CLOSED, NOWHERE
from proxy import bounds, fields, parts
from proxy.requests import Route, parse
from tests.support.steering import BOUNDED
from tests.support.vllm_judge import judge

OURS = {"no_store", "prompt_cache_isolation_key", "prompt_cache_key"}
MODELS = {"chat": (ChatCompletionRequest, fields.CHAT)}
MODELS["completions"] = (CompletionRequest, fields.COMPLETIONS)


@pytest.mark.parametrize("route", MODELS)
def test_every_field_is_judged(route: str) -> None:
    model, fates = MODELS[route]
    assert fates.keys() - OURS == model.model_fields.keys()
    assert not [one for one in model.model_fields.values() if one.alias or one.validation_alias]


def test_every_option_of_a_stream_is_judged() -> None:
    assert fields.STREAM_OPTIONS.keys() == StreamOptions.model_fields.keys()


def test_every_constraint_is_judged() -> None:
    known = {one.name for one in dataclasses.fields(StructuredOutputsParams) if one.init}
    assert known == bounds.STRUCTURED
    repetition = {one.name for one in dataclasses.fields(RepetitionDetectionParams)}
    assert repetition >= BOUNDED_REPETITION
    assert bounds.repetition(dict.fromkeys(repetition, 2)) is None


BOUNDED_REPETITION = {
    name for case in BOUNDED["repetition_detection"] if isinstance(case, dict) for name in case
} - {"x"}


def test_every_kind_of_part_is_judged() -> None:
    assert MM_PARSER_MAP.keys() == parts.TEXT_KINDS | parts.MEDIA_KINDS | parts.REFUSED_KINDS
    assert TEXT_PART_TYPES <= parts.TEXT_KINDS
    judged = parts.KEPT_KEYS | parts.DROPPED_KEYS | parts.REFUSED_KINDS
    assert judged - UNDECLARED_KEYS >= _KNOWN_CONTENT_PART_FIELDS - DROPPED_WITH_THE_REST


DROPPED_WITH_THE_REST = {"data", "file", "prompt_cache_breakpoint"}
"""Of parts that are refused, and of OpenAI's cache."""
UNDECLARED_KEYS = {"cache_control"}


def test_every_parameter_of_a_templates_call_is_judged() -> None:
    parameters = inspect.signature(PythonBackend.apply_chat_template).parameters.values()
    named = {one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD}
    of_their_own = {"add_generation_prompt", "continue_final_message", "documents", "tools"}
    for name in named - of_their_own - {"self"}:
        assert bounds.template_arguments({name: 1}) is not None, name


@pytest.mark.parametrize("key", sorted(parts.URLS))
@pytest.mark.parametrize("url", ["http://a", "file:///a", "data:image/png;base64,AA=="])
def test_vllm_finds_urls_where_the_proxy_looks(key: str, url: str) -> None:
    for given_url in (url, {"url": url}):
        for part in ({key: given_url}, {"type": "text", key: given_url, "uuid": "x"}):
            assert _parse_chat_message_content_mm_part(part) == (key, url)


def test_a_mediums_name_changes_nothing_of_how_vllm_reads_it() -> None:
    data = "data:image/png;base64,AA=="
    cases: list[Any] = [{"type": key, key: {"url": data}} for key in parts.URLS]
    cases += [{key: data} for key in parts.URLS]
    cases += [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]
    for part in cases:
        (message,) = parts.named([{"role": "user", "content": [part]}], "salt")
        (named,) = message["content"]
        assert named.keys() - part.keys() == {"uuid"}
        read = _parse_chat_message_content_mm_part
        assert read(named) == read(part)


def test_vllm_takes_for_data_what_the_proxy_does() -> None:
    class Media:
        def load_base64(self, _kind: str, _data: str) -> str:
            return "data"

    connector = MediaConnector(allowed_media_domains=[NOWHERE])
    for url in ("data:image/png;base64,AA==", "DATA:;base64,", "data:a;b=c;base64,x"):
        assert parts.is_data(url)
        assert connector.load_from_url(url, Media()) == "data"
    for url in ("data:,x", "data:base64,x", "data:x;BASE64,x", "data:;base64", "data:;base64;a,x"):
        assert not parts.is_data(url)
        with pytest.raises((ValueError, NotImplementedError)):
            connector.load_from_url(url, Media())


ELSEWHERE = ["http://a/b", "HTTPS://a", "http://a@nothing-is-fetched.invalid.b", "http:///x"]


@pytest.mark.parametrize("url", [*ELSEWHERE, "file:///etc/passwd", "ftp://a", "//a", "x"])
def test_an_engine_itself_fetches_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Media:
        def get_max_bytes(self) -> int:
            return 1 << 20

    def reached(*_args: object, **_options: object) -> None:
        raise AssertionError("it went out")

    monkeypatch.setattr(HTTPConnection, "get_bytes", reached)
    monkeypatch.setattr(HTTPConnection, "async_get_bytes", reached)
    connector = MediaConnector(allowed_media_domains=[NOWHERE])
    with pytest.raises((ValueError, RuntimeError)):
        connector.load_from_url(url, Media())
    with pytest.raises((ValueError, RuntimeError)):
        asyncio.run(connector.load_from_url_async(url, Media()))


def test_an_engine_takes_the_flags_for_it() -> None:
    parser = make_arg_parser(FlexibleArgumentParser())
    flags = ["--allowed-media-domains", NOWHERE, "--no-log-error-stack", "--enable-prefix-caching"]
    args = parser.parse_args(flags)
    assert not args.log_error_stack
    assert args.allowed_media_domains == [NOWHERE]
    assert args.allowed_local_media_path == ""
    assert not args.trust_request_chat_template
    assert not args.trust_request_mm_kwargs
    assert not args.enable_prompt_embeds
    assert CLOSED.keys() <= envs.environment_variables.keys()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["auto", "text", "none", "json_schema", "function", "user", "low", "1", ""])
    | st.text(max_size=4)
)
KEYS = st.sampled_from(
    ["type", "function", "name", "schema", "json_schema", "json", "regex", "choice", "1", "role"]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
PART_KEYS = st.sampled_from(sorted(parts.KEPT_KEYS | parts.DROPPED_KEYS))
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(parts.ROLES))},
    optional={
        "content": JSON | st.lists(st.dictionaries(PART_KEYS, JSON, max_size=3), max_size=2),
        "tool_calls": JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=3), max_size=2),
        "tool_call_id": JSON,
        "reasoning": JSON,
        "reasoning_content": JSON,
        "name": JSON,
    },
)
BODIES: dict[Route, st.SearchStrategy[dict[str, Any]]] = {
    "chat": st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE, min_size=1, max_size=2)},
        optional={name: JSON for name in fields.CHAT if name != "messages"},
    ),
    "completions": st.fixed_dictionaries(
        {"prompt": JSON | st.just("hi")},
        optional={name: JSON for name in fields.COMPLETIONS if name != "prompt"},
    ),
}


def few(body: dict[str, Any], keep: list[bool]) -> dict[str, Any]:
    """``body`` with fewer fields: of many, one is always wrong."""
    names = [name for name in body if name not in {"messages", "prompt"}]
    gone = {name for at, name in enumerate(names) if not keep[at % len(keep)]}
    return {name: value for name, value in body.items() if name not in gone}


@pytest.mark.parametrize("route", get_args(Route))
@given(data=st.data())
def test_what_the_proxy_lets_pass_fails_no_worker(route: Route, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.sampled_from([True, *[False] * 9]), min_size=9, max_size=60))
    body = few(data.draw(BODIES[route]), keep)
    try:
        passed = parse(route, msgspec.json.encode(body)).body
    except ApiError:
        return
    status, why = judge(f"/v1/{route}", passed)
    assert status in {200, 400}, (why, passed)
