"""Whether a run's figures mean what they say; and that any run at all has a verdict."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measures.summary import Asked, summary
from bench.records import STAGES, TIERS, Record
from bench.result import RunResult, Slo, Verdict
from tests.unit.bench.measures.records import failed, record

repeatable = settings(deadline=None, derandomize=True)


def verdict(*records: Record, **asked: Any) -> Verdict:
    return summary(records, Asked(**{"open_loop": True, "hit_ratio": 0.0, **asked})).verdict


def late(lag: float, **changes: Any) -> list[Record]:
    return [record(number, sent=number + lag, **changes) for number in range(20)]


def test_a_run_as_it_should_be_is_valid() -> None:
    told = verdict(*(record(number, cached_tokens=0) for number in range(4)))
    assert told == Verdict(
        valid=True,
        sentence="VALID: all 4 requests were answered, half of them with a first token within "
        "50 ms.",
    )


@pytest.mark.parametrize(
    ("lag", "ttft", "valid"),
    [
        # A millisecond is allowed however fast the server is,
        (0.0009, 0.005, True),
        (0.0011, 0.005, False),
        # and 5 % of the TTFT where that is more.
        (0.0049, 0.1, True),
        (0.0051, 0.1, False),
    ],
)
def test_a_client_that_was_late_makes_a_run_invalid(lag: float, ttft: float, valid: bool) -> None:
    told = verdict(*late(lag, ttft=ttft))
    assert told.valid == valid
    if not valid:
        (reason,) = told.reasons
        assert f"schedule lag p90 {lag * 1000:.2f} ms" in reason
        assert f"allowed are {max(1, ttft * 50):.2f} ms" in reason
        assert told.sentence == f"INVALID: {reason}."


@pytest.mark.parametrize(
    ("count", "late_ones", "valid"),
    # Judged at p90 of 100 requests, p95 of 200, p99 of 1000: ten have to lie beyond.
    [(100, 9, True), (100, 12, False), (200, 9, True), (200, 12, False), (1000, 9, True),
     (1000, 12, False)],
)  # fmt: skip
def test_a_hiccup_of_the_client_is_no_lateness(count: int, late_ones: int, valid: bool) -> None:
    run = [record(n, sent=n + 0.5 * (n < late_ones)) for n in range(count)]
    assert verdict(*run).valid == valid


def test_lateness_does_not_hide_behind_the_ttft_it_makes() -> None:
    # 2 s late, answered in 50 ms: the limit is of the service time, not of the response time.
    assert not verdict(*late(2.0)).valid


def test_requests_that_failed_were_sent_late_all_the_same() -> None:
    on_time = [record(number) for number in range(10)]
    assert not verdict(
        *on_time, *(failed(n, sent=n + 5.0, finished=n + 6.0) for n in range(10))
    ).valid


def test_users_wait_for_answers_so_they_are_never_late() -> None:
    assert verdict(*late(2.0), open_loop=False).valid


def test_a_run_that_was_stopped_is_invalid() -> None:
    assert verdict(record(), stopped="it was stopped").reasons == ("it was stopped",)


def hits(cached: list[int | None], **asked: Any) -> RunResult:
    records = [record(number, cached_tokens=tokens) for number, tokens in enumerate(cached)]
    return summary(records, Asked(**{"open_loop": True, "hit_ratio": 0.3, **asked}))


@pytest.mark.parametrize(
    ("cached", "asked", "achieved", "valid"),
    [
        # The answers tell it: of 200 tokens.
        ([40, 20], {}, 0.3, True),
        ([43, 20], {}, 0.315, True),
        ([36, 20], {}, 0.28, True),
        ([45, 20], {}, 0.325, False),
        ([35, 20], {}, 0.275, False),
        # One that tells none beside others that do had none.
        ([60, None], {}, 0.3, True),
        # Hits where none were meant: the caches were warm by accident.
        ([60, 0], {"hit_ratio": 0.0}, 0.3, False),
        # The server's counters stand in for answers that tell nothing.
        ([None, None], {"server_hits": 0.31}, 0.31, True),
        ([0, 0], {"server_hits": 0.31}, 0.31, True),
        ([None, None], {"server_hits": 0.1}, 0.1, False),
        ([None, None], {"server_hits": 0.0}, 0.0, False),
        ([60, 0], {"server_hits": 0.9}, 0.3, True),
        # Nobody tells anything: not known, which matters where hits were meant.
        ([None, None], {}, None, False),
        ([0, 0], {}, None, False),
        ([None, None], {"hit_ratio": 0.0}, None, True),
        ([0, 0], {"hit_ratio": 0.0}, 0.0, True),
        ([None, None], {"hit_ratio": 0.02}, None, True),
    ],
)
def test_hits_are_as_intended_or_the_run_is_invalid(
    cached: list[int | None], asked: dict[str, Any], achieved: float | None, valid: bool
) -> None:
    result = hits(cached, **asked)
    if achieved is None:
        assert result.hits.achieved is None
        assert "hit_ratio" not in result.metrics
    else:
        assert result.hits.achieved == pytest.approx(achieved)
        assert result.metrics["hit_ratio"] == pytest.approx(achieved)
    assert result.metrics["hit_ratio_intended"] == asked.get("hit_ratio", 0.3)
    assert result.verdict.valid == valid
    if not valid:
        intended = asked.get("hit_ratio", 0.3)
        assert result.verdict.reasons == (
            "the server told no cached tokens, so the hit ratio is not known"
            if achieved is None
            else f"the hit ratio was {achieved:.1%} and meant to be {intended:.1%}",
        )


def test_failed_requests_and_uncounted_prompts_are_in_no_hit_ratio() -> None:
    result = summary(
        [
            record(0, cached_tokens=30),
            record(1, cached_tokens=50, prompt_tokens=None),
            failed(2, cached_tokens=99, prompt_tokens=100),
        ],
        Asked(open_loop=True, hit_ratio=0.3),
    )
    assert result.hits.achieved == pytest.approx(0.3)


def test_all_that_is_wrong_is_told_in_one_sentence() -> None:
    told = verdict(*late(2.0), hit_ratio=0.5, stopped="it was stopped before its end")
    assert len(told.reasons) == 3
    assert told.sentence == f"INVALID: {'; '.join(told.reasons)}."


moments = st.floats(0, 1e5)
counts = st.none() | st.integers(0, 10**6)


@st.composite
def records(draw: st.DrawFn) -> Record:
    intended = draw(moments)
    sent = intended + draw(st.floats(0, 100))
    good = draw(st.booleans())
    steps = draw(st.lists(st.floats(0, 100), min_size=int(good), max_size=5))
    tokens, at = [], sent
    for step in steps:
        at += step
        tokens.append(at)
    prompt = draw(counts)
    return Record(
        number=draw(st.integers(0, 100)),
        phase=draw(st.sampled_from(["warm", "prime", "measured", "measured"])),
        tenant=draw(st.sampled_from(["", "a", "b"])),
        planned_prompt_tokens=draw(st.integers(1, 10**6)),
        planned_output_tokens=draw(st.integers(1, 10**6)),
        intended=intended,
        sent=sent,
        tokens=tuple(tokens),
        finished=at,
        error="" if good else draw(st.text(min_size=1)),
        prompt_tokens=prompt,
        output_tokens=draw(counts),
        cached_tokens=draw(st.none() | st.integers(0, prompt or 0)),
        stages=draw(st.dictionaries(st.sampled_from(STAGES), st.floats(0, 1e6))),
        tiers=draw(st.dictionaries(st.sampled_from(TIERS), st.integers(0, prompt or 0))),
    )


asked_runs = st.builds(
    Asked,
    open_loop=st.booleans(),
    hit_ratio=st.floats(0, 0.999),
    slo=st.none() | st.builds(Slo, name=st.just("own"), ttft_ms=st.none() | st.floats(0, 1e6)),
    server_hits=st.none() | st.floats(0, 1),
    stopped=st.sampled_from(["", "it was stopped"]),
)


def numbers(told: Any) -> list[float]:
    if isinstance(told, dict):
        return [number for value in told.values() for number in numbers(value)]
    if isinstance(told, list):
        return [number for value in told for number in numbers(value)]
    return [told] if isinstance(told, int | float) else []


@settings(repeatable, max_examples=60)
@given(st.lists(records(), max_size=8), asked_runs)
def test_any_records_have_a_summary_of_finite_numbers(run: list[Record], asked: Asked) -> None:
    result = summary(run, asked)
    assert msgspec.json.decode(msgspec.json.encode(result), type=RunResult) == result
    # The encoder would write null for a number that is none; so look before it does.
    assert all(math.isfinite(number) for number in numbers(msgspec.to_builtins(result)))
    assert result.hits.achieved is None or 0 <= result.hits.achieved <= 1
    assert result.verdict.valid == (not result.verdict.reasons)
    assert result.metrics["requests"] == sum(tenant.requests for tenant in result.tenants)
    if fairness := result.metrics.get("fairness"):
        assert 1 / len(result.tenants) - 1e-6 <= fairness <= 1 + 1e-6


def test_users_are_judged_by_the_lateness_of_the_clients_loop() -> None:
    calm, busy = (0.001,) * 39 + (0.2,), (0.001,) * 10 + (0.2,) * 10
    assert verdict(record(), open_loop=False, loop_late=calm).valid
    told = verdict(record(), open_loop=False, loop_late=busy)
    assert "loop lag p95 200.00 ms" in told.sentence
    assert verdict(record(), open_loop=True, loop_late=busy).valid  # it has a schedule to keep


def test_a_server_that_tells_no_cached_tokens_is_said_to_tell_none() -> None:
    run = summary([record()], Asked(open_loop=True, hit_ratio=0.0))
    assert run.verdict.valid
    assert "told no cached tokens" in run.verdict.sentence
    assert "hit_ratio" not in run.metrics
