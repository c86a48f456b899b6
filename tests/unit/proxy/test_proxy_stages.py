"""Where a TTFT went: whatever workers tell, the parts are there, in order, and add up."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.handoff import PrefillReport
from kvstore.messages import Outcome, Times
from proxy.stages import Moments, Told, so_far, stages, timing_header, told
from proxy.usage import Path, PrefillEnd

ALL = ["route", "queue", "prefill", "ship", "handover", "first_decode"]
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
GAPS = st.floats(0, 1000)


def moments(
    routed: float | None = 100.01,
    prefill_ended: float | None = 100.9,
    answered: float = 101.0,
    streamed: bool = True,
) -> Moments:
    return Moments(100.0, routed, prefill_ended, answered, streamed)


WORKERS = Told(prefill_ms=800.0, in_place_ms=120.0, begun_ms=60.0)


def test_each_stage_lies_between_its_two_moments() -> None:
    assert stages("disaggregated", moments(), WORKERS) == {
        "route": 10.0,
        "queue": 90.0,
        "prefill": 800.0,
        "ship": 0.0,
        "handover": 40.0,
        "first_decode": 60.0,
    }


def test_blocks_that_come_after_the_prefill_legs_end_were_being_shipped() -> None:
    late = stages("disaggregated", moments(), Told(800.0, in_place_ms=75.0, begun_ms=60.0))
    assert (late["ship"], late["handover"]) == (25.0, 15.0)


def test_decode_knows_better_than_the_prefill_legs_late_answer() -> None:
    found = stages("disaggregated", moments(prefill_ended=101.5), WORKERS)
    assert found["first_decode"] == 60.0
    assert (found["ship"], found["handover"]) == (0.0, 0.0)


@pytest.mark.parametrize("path", ["decode-only", "recomputed"])
def test_what_decode_computes_has_its_own_queue_and_prefill(path: Path) -> None:
    found = stages(path, moments(), Told(800.0, 120.0, begun_ms=600.0))
    assert found == {"route": 10.0, "queue": 390.0, "prefill": 600.0}


def test_an_answer_that_is_not_streamed_lacks_its_last_stage() -> None:
    whole = moments(streamed=False)
    assert list(stages("disaggregated", whole, WORKERS)) == ALL[:-1]
    assert list(stages("decode-only", whole, WORKERS)) == ["route", "queue"]
    assert "first_token" not in timing_header(whole, {})


def test_what_nobody_told_is_left_out_and_counted_in_what_follows() -> None:
    assert stages("disaggregated", moments(), Told()) == {
        "route": 10.0,
        "prefill": 890.0,
        "first_decode": 100.0,
    }
    unended = stages("disaggregated", moments(prefill_ended=None), WORKERS)
    assert unended["prefill"] == 870.0
    assert "queue" not in unended
    assert stages("decode-only", moments(routed=None), Told()) == {"prefill": 1000.0}


@given(
    st.sampled_from(get_args(Path)),
    st.tuples(GAPS, GAPS, GAPS),
    st.tuples(*[st.none() | FLOATS] * 3),
    st.booleans(),
    st.booleans(),
)
def test_whatever_is_told_no_stage_is_negative_and_they_add_up(
    path: Path,
    gaps: tuple[float, float, float],
    figures: tuple[float | None, float | None, float | None],
    ended: bool,
    routed: bool,
) -> None:
    arrived, until_routed, until_answered = gaps
    routed_at = arrived + until_routed
    answered = routed_at + until_answered
    subject = Moments(
        arrived,
        routed_at if routed else None,
        figures[0] if ended else None,
        answered,
        streamed=True,
    )
    found = stages(path, subject, Told(*figures))
    assert list(found) == [name for name in ALL if name in found]
    assert all(duration >= 0 for duration in found.values())
    ttft = (answered - arrived) * 1000
    assert sum(found.values()) == pytest.approx(ttft, abs=0.001)


@given(GAPS, GAPS, GAPS, GAPS)
def test_what_workers_tell_rightly_is_told_as_it_is(
    queue: float, prefill: float, handover: float, first_decode: float
) -> None:
    ended = 100.01 + queue + prefill
    subject = moments(prefill_ended=ended, answered=ended + handover + first_decode)
    workers = Told(prefill * 1000, (handover + first_decode) * 1000, first_decode * 1000)
    found = stages("disaggregated", subject, workers)
    seconds = {"queue": queue, "prefill": prefill, "ship": 0, "handover": handover}
    for name, expected in {**seconds, "first_decode": first_decode}.items():
        assert found[name] == pytest.approx(expected * 1000, abs=0.01), name


def test_before_the_prefill_leg_has_ended_only_the_route_is_sure() -> None:
    under_way = moments(prefill_ended=None)
    assert so_far("disaggregated", under_way, WORKERS) == {"route": 10.0}
    assert list(so_far("disaggregated", moments(), WORKERS)) == ALL
    assert list(so_far("decode-only", under_way, WORKERS)) == ALL[:3]


def test_the_header_has_moments_first_and_then_stages() -> None:
    assert timing_header(moments(), {"route": 10.0, "ship": 0.0}) == (
        "prefill_ended;dur=900.000, first_token;dur=1000.000, route;dur=10.000, ship;dur=0.000"
    )


def test_a_transfers_end_counts_from_the_requests_arrival_in_the_engine() -> None:
    times = Times(arrived_ms=900.0, begun_ms=60.0)
    outcome = Outcome(bytes(16), True, 0, 90, 900, wait_ms=780.0)
    end = PrefillEnd(connected=True, cached=0, report=PrefillReport(800.0, 0, 0))
    assert told(times, outcome, end) == WORKERS
    assert told(None, outcome, None) == Told()
