"""Limits on latency."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.errors import BadLoad
from bench.measures.slo import PRESETS, met, parse
from bench.result import Slo
from tests.unit.bench.measures.records import failed, record

repeatable = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("name", "ttft", "tpot"),
    [
        ("mlperf-llama3.1-8b", 2000, 100),
        ("mlperf-llama3.1-8b-interactive", 500, 30),
        ("mlperf-llama2-70b", 2000, 200),
        ("mlperf-llama2-70b-interactive", 450, 40),
        ("mlperf-gpt-oss-120b", 3000, 80),
        ("mlperf-gpt-oss-120b-interactive", 2000, 20),
    ],
)
def test_presets_are_mlperfs(name: str, ttft: float, tpot: float) -> None:
    assert parse(name) == Slo(name=name, ttft_ms=ttft, tpot_ms=tpot)


def test_the_interactive_limits_are_the_tighter_ones() -> None:
    tighter = [name for name in PRESETS if name.endswith("-interactive")]
    assert len(tighter) == 5
    for name in tighter:
        plain = PRESETS[name.removesuffix("-interactive")]
        assert all(one < other for one, other in zip(PRESETS[name], plain, strict=True))


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("ttft=500", {"ttft_ms": 500}),
        ("tpot=30.5", {"tpot_ms": 30.5}),
        ("ttft=500,tpot=30,e2e=9000", {"ttft_ms": 500, "tpot_ms": 30, "e2e_ms": 9000}),
        ("e2e=9000, ttft=500", {"ttft_ms": 500, "e2e_ms": 9000}),
    ],
)
def test_limits_of_ones_own(text: str, limits: dict[str, float]) -> None:
    assert parse(text) == Slo(name=text, **limits)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "ttft", "ttft=", "ttft=-1", "ttft=nan", "itl=5", "ttft=5;tpot=5", "ttft=5,",
     "ttft=" + "9" * 400],
)  # fmt: skip
def test_anything_else_is_refused_with_advice(text: str) -> None:
    message = f"{text!r} is no SLO: give ttft=500,tpot=30 (ms) or one of mlperf-llama3.1-8b, "
    with pytest.raises(BadLoad, match=re.escape(message)):
        parse(text)


def test_a_limit_given_twice_is_refused() -> None:
    with pytest.raises(BadLoad, match="gives ttft twice"):
        parse("ttft=500,tpot=3,ttft=200")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        # The request: 50 ms to the first token, 10 ms for each after it, 70 ms in all.
        ("ttft=50.001", True),
        ("ttft=49.9", False),
        ("tpot=10.001", True),
        ("tpot=9.9", False),
        ("e2e=70.001", True),
        ("e2e=69.9", False),
        ("ttft=51,tpot=11,e2e=71", True),
        ("ttft=51,tpot=9,e2e=71", False),
    ],
)
def test_a_request_keeps_every_limit_or_none(text: str, kept: bool) -> None:
    assert met(record(), parse(text)) == kept


def test_a_limit_counts_from_the_intended_send() -> None:
    assert not met(record(intended=0.0, sent=0.02), parse("ttft=60"))


def test_a_limit_itself_is_kept() -> None:
    assert met(record(ttft=0.5, events=1), parse("ttft=500,e2e=500"))


def test_one_token_has_no_time_between_tokens_to_be_limited() -> None:
    assert met(record(events=1), parse("tpot=0"))


def test_a_request_that_failed_keeps_nothing() -> None:
    assert not met(failed(), Slo())
    # Not even one that broke off after its tokens had come in time.
    assert not met(record(error="the stream broke off"), Slo(ttft_ms=9000))
    assert met(record(), Slo())


@repeatable
@given(st.text("tpe2=,.0 5", max_size=20))
def test_parsing_gives_limits_or_says_why_not(text: str) -> None:
    try:
        limits = parse(text)
    except BadLoad:
        return
    assert limits.name == text
    assert any(limit is not None for limit in (limits.ttft_ms, limits.tpot_ms, limits.e2e_ms))
