"""Event streams cut anywhere, and the one event that is rewritten."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import WorkerLost
from proxy import streaming
from proxy.streaming import EventSplitter, first_event, relay, usage_event

TEXT = st.text(max_size=10) | st.sampled_from(['"choices":[]', "\n\n", "data:", '\\"choices\\":[]'])


def event(fields: object) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event({"choices": [{"index": 0, "text": text}]})


def usage(cached: int = 1, **more: object) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 9, "cached": cached}, **more})


DONE = b"data: [DONE]\n\n"


@st.composite
def cut(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=12)))
    bounds = [0, *places, len(raw)]
    return [raw[a:b] for a, b in itertools.pairwise(bounds)]


@given(st.lists(TEXT, max_size=6), st.binary(max_size=5), st.data())
def test_events_survive_any_cut(texts: list[str], tail: bytes, draw: st.DataObject) -> None:
    events = [delta(text) for text in texts]
    tail = tail.replace(b"\n", b"")
    splitter = EventSplitter()
    got: list[bytes] = []
    for chunk in draw.draw(cut(b"".join(events) + tail)):
        got += splitter.feed(chunk)
    assert got == events
    assert splitter.rest() == tail


@given(st.lists(st.binary(max_size=6), max_size=20))
def test_no_byte_is_lost_or_invented(chunks: list[bytes]) -> None:
    splitter = EventSplitter()
    got = b"".join(b"".join(splitter.feed(chunk)) for chunk in chunks)
    assert got + splitter.rest() == b"".join(chunks)


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAX_EVENT_BYTES", 10)
    splitter = EventSplitter()
    splitter.feed(b"data: 1234")
    with pytest.raises(WorkerLost):
        splitter.feed(b"5")


async def _chunks(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def relayed(parts: list[bytes], *, keep: bool) -> tuple[bytes, list[dict[str, Any]]]:
    """What a client gets, and the usages that were amended."""
    amended: list[dict[str, Any]] = []

    async def amend(figures: dict[str, Any]) -> dict[str, Any]:
        amended.append(figures)
        return {"usage": {**figures, "cached": 7}, "kvferry": {}}

    async def collect() -> bytes:
        return b"".join([piece async for piece in relay(_chunks(parts), amend, keep_usage=keep)])

    return asyncio.run(collect()), amended


@given(st.lists(TEXT, max_size=4), st.booleans(), st.data())
def test_only_the_usage_event_changes(texts: list[str], keep: bool, draw: st.DataObject) -> None:
    before = b"".join(delta(text) for text in texts)
    parts = draw.draw(cut(before + usage() + DONE))
    got, amended = relayed(parts, keep=keep)
    assert got == before + (usage(7, kvferry={}) if keep else b"") + DONE
    assert amended == [{"prompt_tokens": 9, "cached": 1}]


def test_text_that_looks_like_a_usage_event_is_text() -> None:
    for text in ('{"choices":[],"usage":{}}', '"choices": []', '\\"choices\\":[]'):
        assert usage_event(delta(text)) is None
    assert usage_event(usage()) is not None
    assert usage_event(b'data: {"choices":[],"usage":null}\n\n') is None
    assert usage_event(b'data: {"choices":[] broken\n\n') is None
    assert usage_event(b": keep-alive\n\n") is None


def test_other_events_pass_as_they_are() -> None:
    odd = [b": keep-alive\n\n", b"event: x\ndata: y\n\n", b"data: {broken\n\n", b"rest"]
    got, amended = relayed(odd, keep=True)
    assert got == b"".join(odd)
    assert not amended


@given(st.lists(TEXT, min_size=1, max_size=3), st.data())
def test_first_event_is_whole(texts: list[str], draw: st.DataObject) -> None:
    raw = b"".join(delta(text) for text in texts)
    parts = draw.draw(cut(raw))
    begun = asyncio.run(first_event(_chunks(parts)))
    assert raw.startswith(begun)
    assert b"\n\n" in begun
