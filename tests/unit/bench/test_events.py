"""Reading an event stream: the same outcome however it is cut into pieces."""

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import Malformed
from bench.events import LONGEST_EVENT, EventReader, Outcome


def read(pieces: list[bytes]) -> list[bytes]:
    reader = EventReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.finish()


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:end] for start, end in pairwise(ends)]


def take(*events: object, keep_text: bool = False) -> Outcome:
    outcome = Outcome(keep_text=keep_text)
    for number, event in enumerate(events):
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        outcome.take(data, float(number))
    return outcome


def chat(**delta: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta}]}


LINE = st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b""))


@given(
    st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5),
    st.sampled_from([b"\n", b"\r\n"]),
    st.lists(st.integers(min_value=0), max_size=40),
    st.booleans(),
)
def test_any_cutting_gives_the_same_events(
    events: list[list[bytes]], end: bytes, places: list[int], whole: bool
) -> None:
    stream = b": ping" + end
    for lines in events:
        stream += b"event: message" + end
        stream += b"".join(b"data: " + line + end for line in lines) + end
    if not whole:  # servers leave out the last line's end
        stream = stream.removesuffix(end)
    expected = [b"\n".join(lines) for lines in events]
    assert read(cut(stream, places)) == expected
    assert read([bytes([byte]) for byte in stream]) == expected


@pytest.mark.parametrize(
    ("pieces", "events"),
    [
        ([b"data: a\n\ndata: b\n\n"], [b"a", b"b"]),
        ([b"data: a\nevent: x\n\n"], [b"a"]),
        ([b"data: a\ndata: b\n\n"], [b"a\nb"]),
        ([b"data: a\n\n\ndata: b\n\n"], [b"a", b"b"]),
        ([b"data: a\r\n\n"], [b"a"]),
        ([b"data: a\n", b"data: b\n\n"], [b"a\nb"]),
        ([b"data: a", b"data: b\n\n"], [b"adata: b"]),
        ([b"data: a\n\n", b"data: b\n\n"], [b"a", b"b"]),
        ([b": c\n\n", b"\n\n"], []),
    ],
)
def test_whole_events_are_no_special_case(pieces: list[bytes], events: list[bytes]) -> None:
    assert read(pieces) == events
    assert read([bytes([byte]) for byte in b"".join(pieces)]) == events


def test_only_one_space_after_the_colon_is_no_content() -> None:
    assert read([b"data:x\n\ndata:  y\n\n"]) == [b"x", b" y"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(Malformed, match="line"):
        read([b"x" * 1024] * (LONGEST_EVENT // 1024 + 1))


def test_an_event_of_endless_lines_is_refused() -> None:
    with pytest.raises(Malformed, match="event"):
        read([b"data: " + b"x" * 1024 + b"\n"] * (LONGEST_EVENT // 1024 + 1))


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["choices", "usage", "delta", "text", "error", "kvferry"]), inner
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_an_event_holds_only_malformed_is_raised(data: bytes) -> None:
    with suppress(Malformed):
        Outcome(keep_text=True).take(data, 0.0)


def test_an_event_deeper_than_the_stack_is_malformed() -> None:
    with pytest.raises(Malformed):
        Outcome().take(b'{"error":' + b"[" * 100_000, 0.0)


def test_a_text_less_event_of_a_completion_is_a_token() -> None:
    outcome = take(
        {"choices": [{"text": "a"}]},
        {"choices": [{"text": ""}]},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        b"[DONE]",
    )
    assert outcome.tokens == [0.0, 1.0]
    assert outcome.ended() == ""
    assert outcome.text == ""


def test_a_chat_counts_from_its_first_content() -> None:
    outcome = take(
        chat(role="assistant", content=""),
        chat(reasoning_content="hm"),
        chat(content="a"),
        chat(content=""),
        chat(role="assistant", content="b"),
        chat(),
        b"[DONE]",
        keep_text=True,
    )
    assert outcome.tokens == [1.0, 2.0, 3.0, 4.0]
    assert outcome.text == "ab"


def test_the_last_usage_counts_and_what_stands_beside_it() -> None:
    first = {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1}, "kvferry": {"old": 1}}
    last = {
        "choices": [],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
        "kvferry": {"stages": {"queue": 1.5}},
    }
    outcome = take(first, last, {"choices": [{"text": "b"}], "usage": None}, b"[DONE]")
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.cached_tokens) == (9, 2, 8)
    assert outcome.trailer == {"stages": {"queue": 1.5}}
    assert outcome.usage == last["usage"]


def test_a_null_in_place_of_details_is_no_count() -> None:
    outcome = take({"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": None}})
    assert (outcome.prompt_tokens, outcome.cached_tokens) == (3, 0)
    assert outcome.trailer == {}
