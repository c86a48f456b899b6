"""The requests of the router benchmark share what they say they share."""

from __future__ import annotations

import msgspec
import pytest

from bench.routing.prompts import KINDS, PATH, SHARED, Asked, Kind, Prompts

KEYS = ["one", "two", "newcomer"]
SIZES: dict[Kind, int] = {"1k": 1000, "220k": 5000}


def texts(asked: Asked) -> list[str]:
    body = msgspec.json.decode(asked.body())
    assert body["stream"]
    assert body["max_tokens"] == 16
    return [message["content"] for message in body["messages"]]


@pytest.fixture
def prompts() -> Prompts:
    return Prompts("stub", KEYS, SIZES, 16, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tenants_prompts_share_their_beginning_and_nothing_else(
    prompts: Prompts, kind: Kind
) -> None:
    first, other, second = prompts.shared(kind, 3)
    assert [one.key for one in (first, other, second)] == ["one", "two", "one"]
    common, new = texts(first)
    assert len(common) + len(new) == SIZES[kind]
    assert len(common) == round(SHARED[kind] * SIZES[kind])
    assert texts(second)[0] == common
    assert first.new == new
    unlike = {new, common, texts(second)[1], texts(other)[0], texts(other)[1]}
    assert len({text[:20] for text in unlike if text[:20].isdecimal()}) == 5


def test_novel_prompts_share_nothing_and_are_their_own_tenants(prompts: Prompts) -> None:
    one, other = prompts.novel("220k", 2)
    assert one.key == other.key == "newcomer"
    assert len(one.new) == SIZES["220k"]
    assert one.new[:20] != other.new[:20]
    assert one.new[:20].isdecimal()


def test_a_request_is_whole(prompts: Prompts) -> None:
    asked = prompts.shared("1k", 1)[0]
    head, _, body = asked.request("127.0.0.1:1").partition(b"\r\n\r\n")
    assert body == asked.body()
    assert head.startswith(f"POST {PATH} HTTP/1.1\r\n".encode())
    assert f"content-length: {len(body)}".encode() in head
    assert b"authorization: Bearer one" in head
