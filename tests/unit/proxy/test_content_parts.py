"""Nothing in a message makes a worker fetch, open or confuse anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import ApiError
from proxy import parts

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def checked(*content: Any, role: str = "user") -> tuple[list[Any], bool]:
    message = {"role": role, "content": list(content)}
    media = parts.check([message])
    return message["content"], media  # type: ignore[return-value]


def refused(*content: Any, role: str = "user") -> str | None:
    with pytest.raises(ApiError) as error:
        checked(*content, role=role)
    assert error.value.status == 400
    return error.value.param


ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/a.png",
    "HTTP://EXAMPLE.COM",
    "hTtPs://example.com",
    " http://example.com",
    "\nhttp://example.com",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file:/etc/passwd",
    "/etc/passwd",
    "../secret",
    "ftp://example.com/a",
    "gopher://example.com/a",
    "//example.com/a.png",
    "s3://bucket/key",
    "blob:http://example.com/a",
    "javascript:x",
    " data:,x",
    "\tdata:,x",
    "data",
    "da ta:,",
    "dаta:,",  # a Cyrillic letter
    "http://data:@example.com/",
    "http://169.254.169.254/;base64,AA==",
    "file:///etc/passwd;base64,",
    "FILE:///data:;base64,",
    " data:;base64,AA==",
    "xdata:;base64,AA==",
    "",
]


@pytest.mark.parametrize("key", sorted(parts.URLS))
@pytest.mark.parametrize("url", ELSEWHERE)
def test_nothing_is_fetched(key: str, url: str) -> None:
    at = f"messages[0].content[0].{key}"
    for value in (url, {"url": url}, {"url": url, "detail": "high"}):
        assert refused({"type": key, key: value}) == at
        assert refused({key: value}) == at
        assert refused({"type": "text", "text": "a", key: value}) == at
        assert refused({"type": "input_image", key: value}) == at
        assert refused({"type": key, key: value, "uuid": "x"}) == at
    assert refused("a", {"text": "b"}, {"type": key, key: url}) == f"messages[0].content[2].{key}"


@pytest.mark.parametrize("key", sorted(parts.URLS))
@pytest.mark.parametrize(
    "value", [None, 1, [], [PIXEL], ["http://a"], {}, {"url": None}, {"url": {"url": "http://a"}}]
)
def test_a_url_in_no_known_shape_is_refused(key: str, value: object) -> None:
    assert refused({"type": key, key: value}) == f"messages[0].content[0].{key}"


@pytest.mark.parametrize("role", sorted(parts.ROLES))
def test_in_any_message(role: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://a"}}
    assert refused(part, role=role) == "messages[0].content[0].image_url"


@pytest.mark.parametrize("key", sorted(parts.URLS))
@pytest.mark.parametrize("url", [PIXEL, PIXEL.replace("data", "DaTa"), "data:;base64,"])
def test_what_is_sent_along_passes(key: str, url: str) -> None:
    for value in (url, {"url": url}):
        assert checked({"type": key, key: value}) == ([{"type": key, key: value}], True)


@pytest.mark.parametrize("kind", sorted(parts.REFUSED_KINDS))
def test_tensors_are_refused(kind: str) -> None:
    assert refused({"type": kind, kind: "AA=="}) == "messages[0].content[0].type"
    assert refused({kind: "AA=="}) == f"messages[0].content[0].{kind}"
    assert refused({"type": "text", "text": "a", kind: None}) == f"messages[0].content[0].{kind}"


@pytest.mark.parametrize("kind", ["image", "video", "file", "IMAGE_URL", "image_url ", "x", "", 1])
def test_other_kinds_are_refused(kind: object) -> None:
    assert refused({"type": kind, "url": "http://a"}) == "messages[0].content[0].type"
    assert refused({"type": [kind]}) == "messages[0].content[0].type"


@pytest.mark.parametrize("key", [*sorted(parts.DROPPED_KEYS), "url", "path", "file", "image", "x"])
def test_other_keys_are_dropped(key: str) -> None:
    for part in ({"type": "text", "text": "a"}, {"type": "image_url", "image_url": PIXEL}):
        assert checked({**part, key: "http://a"})[0] == [part]


def test_another_clients_media_cannot_be_named() -> None:
    assert refused({"type": "image_url", "image_url": None, "uuid": "theirs"})
    part = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    assert checked({**part, "uuid": "theirs"}) == ([part], True)


@pytest.mark.parametrize("audio", ["http://a", [], {"data": 1}, {"data": {"url": "http://a"}}])
def test_audio_in_no_known_shape_is_refused(audio: object) -> None:
    part = {"type": "input_audio", "input_audio": audio}
    assert refused(part) == "messages[0].content[0].input_audio"


@pytest.mark.parametrize("content", [1, True, {"type": "image_url", "image_url": "http://a"}])
def test_content_in_no_known_shape_is_refused(content: object) -> None:
    for messages, param in (
        ([{"role": "user", "content": content}], "messages[0].content"),
        ([{"role": "user", "content": [[content]]}], "messages[0].content[0]"),
    ):
        with pytest.raises(ApiError) as error:
            parts.check(messages)
        assert (error.value.status, error.value.param) == (400, param)


def test_calls_of_tools_are_a_list() -> None:
    with pytest.raises(ApiError) as error:
        parts.check([{"role": "assistant", "tool_calls": 1}])
    assert error.value.param == "messages[0].tool_calls"


URLISH = (
    st.sampled_from(["http://a/;base64,", "file:///a", PIXEL, "text", ""])
    | st.none()
    | st.integers()
)
KEYS = st.sampled_from([*sorted(parts.KEPT_KEYS | parts.DROPPED_KEYS | parts.REFUSED_KINDS), "url"])
NESTED = st.recursive(
    URLISH,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(KEYS, NESTED, max_size=4) | NESTED, max_size=3))
def test_whatever_is_made_of_it_no_url_of_elsewhere_passes(content: list[Any]) -> None:
    try:
        seen, _ = checked(*content)
    except ApiError:
        return
    for part in seen:
        for key in parts.URLS & (part.keys() if isinstance(part, dict) else set()):
            value = part[key]["url"] if isinstance(part[key], dict) else part[key]
            assert value.lower().startswith("data:"), json.dumps(part)
        if isinstance(part, dict):
            assert "uuid" not in part
