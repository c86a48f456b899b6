"""Cached tokens: what neither leg computed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import WorkerLost
from kvstore.handoff import PrefillReport
from kvstore.messages import FailReason, Outcome
from proxy import faults
from proxy.usage import (
    Path,
    PrefillEnd,
    amended,
    cached_tokens,
    path_taken,
    reported_cached,
    split_reply,
    tiers,
    tiers_header,
    whole_reply,
)


def outcome(shipped: bool, local: int, received: int, reason: FailReason | None = None) -> Outcome:
    return Outcome(b"t" * 16, shipped, local, received, received * 10, 1.0, reason)


@pytest.mark.parametrize(
    ("alone", "ticketed", "told", "expected"),
    [
        ("echo", False, None, ("decode-only", "echo")),
        (None, True, outcome(True, 0, 90), ("disaggregated", "")),
        (None, True, outcome(True, 96, 0), ("decode-only", "decode-holds")),
        (None, True, outcome(False, 0, 0, "abandoned"), ("recomputed", "abandoned")),
        (None, True, None, ("recomputed", "no-outcome")),
        (None, False, None, ("recomputed", "decode-lost")),
    ],
)
def test_path(
    alone: str | None, ticketed: bool, told: Outcome | None, expected: tuple[str, str]
) -> None:
    assert path_taken(alone, ticketed, told) == expected


DONE = PrefillEnd(connected=True, cached=64)


@pytest.mark.parametrize(
    ("path", "told", "decode_cached", "end", "cached"),
    [
        ("decode-only", None, 40, None, 40),
        ("decode-only", outcome(True, 96, 0), 96, DONE, 64),
        ("disaggregated", outcome(True, 0, 90), 99, DONE, 64),
        ("disaggregated", outcome(True, 0, 90), 99, PrefillEnd(True), 0),
        ("recomputed", outcome(False, 48, 0, "deadline"), 48, DONE, 48),
        ("recomputed", outcome(False, 80, 0, "deadline"), 80, DONE, 64),
        ("recomputed", outcome(False, 80, 0, "abandoned"), 80, PrefillEnd(True), 0),
        ("recomputed", outcome(False, 80, 0, "abandoned"), 80, PrefillEnd(False), 80),
        ("recomputed", None, 32, DONE, 32),
    ],
)
def test_cached(
    path: Path, told: Outcome | None, decode_cached: int, end: PrefillEnd | None, cached: int
) -> None:
    assert cached_tokens(path, told, decode_cached, end) == cached


COUNT = st.integers(0, 100)
LOADED = PrefillEnd(connected=True, cached=64, report=PrefillReport(1.0, 16, 48))
LOAD_FAILED = PrefillEnd(connected=True, cached=64, report=PrefillReport(1.0, 16, 0))


@pytest.mark.parametrize(
    ("path", "end", "found"),
    [
        ("disaggregated", LOADED, {"gpu": 16, "dram": 48}),
        ("disaggregated", LOAD_FAILED, {"gpu": 16, "dram": 0}),
        ("disaggregated", DONE, {"gpu": 64, "dram": 0}),
        ("disaggregated", None, {"gpu": 80, "dram": 0}),
        ("decode-only", LOADED, {"gpu": 64, "dram": 0}),  # decode's own copy was the one used
    ],
)
def test_tiers_add_up_to_what_was_cached(
    path: Path, end: PrefillEnd | None, found: dict[str, int]
) -> None:
    cached = cached_tokens(path, outcome(True, 96, 96), 80, end)
    assert tiers(path, cached, end) == found
    assert sum(found.values()) == cached
    assert tiers_header(tiers(path, cached, end)) == f"gpu={found['gpu']}, dram={found['dram']}"


@given(COUNT, COUNT, st.booleans(), st.sampled_from(["deadline", "abandoned"]))
def test_never_more_than_either_had(
    prefill: int, local: int, known: bool, reason: FailReason
) -> None:
    end = PrefillEnd(connected=True, cached=prefill if known else None)
    told = outcome(False, local, 0, reason)
    assert cached_tokens("recomputed", told, local, end) <= min(prefill, local)


@pytest.mark.parametrize(
    "usage", [None, 3, {}, {"prompt_tokens_details": None}, {"prompt_tokens_details": {}}]
)
def test_no_figure_is_zero(usage: object) -> None:
    assert reported_cached(usage) == 0


def test_amended_replaces_one_legs_view() -> None:
    details = {"cached_tokens": 9, "created_cache_tokens": 1, "multimodal_tokens": {"image": 2}}
    usage: dict[str, Any] = {"prompt_tokens": 10, "prompt_tokens_details": details}
    assert amended(usage, 4) == {
        "prompt_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4, "multimodal_tokens": {"image": 2}},
    }
    assert amended({"prompt_tokens_details": None}, 0)["prompt_tokens_details"] == {
        "cached_tokens": 0
    }


def test_a_whole_reply_keeps_every_byte_but_the_usage() -> None:
    raw = b'{"a": 1.10,"choices":[{"x":"\xc3\xa4"}],"usage":{"p":1},"kv_transfer_params":{}}'
    fields, usage = split_reply(raw)
    assert whole_reply(fields, {**usage, "q": 2}) == (
        b'{"a":1.10,"choices":[{"x":"\xc3\xa4"}],"usage":{"p":1,"q":2}}'
    )


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"usage":3}', b"\xff", b"[" * 99999])
def test_no_reply_of_vllms(raw: bytes) -> None:
    with pytest.raises(WorkerLost):
        split_reply(raw)


@given(st.integers(100, 599), st.binary(max_size=60))
def test_whatever_a_worker_says_becomes_an_error(status: int, raw: bytes) -> None:
    error = faults.from_worker(status, raw)
    assert error.status in {503, 501} or 400 <= error.status < 500
    shape = msgspec.json.decode(faults.body(error))["error"]
    assert set(shape) == {"message", "type", "param", "code"}


def test_a_message_does_not_repeat_its_parameter() -> None:
    fields = {"message": "bad n. (parameter=n, value=7)", "param": "n", "code": 400}
    error = faults.from_worker(400, msgspec.json.encode({"error": fields}))
    assert (str(error), error.param) == ("bad n.", "n")


@given(st.binary(max_size=60))
def test_only_an_error_event_is_one(raw: bytes) -> None:
    assert faults.in_event(b"data: " + raw) is None or raw.lstrip().startswith(b'{"error"')
