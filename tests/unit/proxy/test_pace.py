"""What a request is said to find and take, and what is learnt from how it went."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest

from kvstore.curves import PrefillCurve, Sample
from proxy.pace import STEP_TOKENS, Pace, Prediction
from proxy.prompts import holdings
from proxy.usage import Path
from proxy.workload import Given
from tests.support.announcing import announce

BLOCK = 32
CHUNK = 256
CURVE = PrefillCurve(0.0, 0.001, 0.0)
WORKER = msgspec.structs.replace(announce(), block_size=BLOCK)

WENT = {
    "route": 5.0,
    "queue": 145.0,
    "prefill": 400.0,
    "ship": 10.0,
    "handover": 5.0,
    "first_decode": 65.0,
}


def given(held: int, seconds: float, loads: int = 0, work: float = 0.0, **more: float) -> Given:
    return Given(0, WORKER, held, seconds, loads, more.get("loading", 0.0), work)


def went(
    pace: Pace,
    made: Prediction,
    stages: Mapping[str, float] | None = None,
    path: Path = "disaggregated",
    cached: int | None = None,
    times: int = 30,
) -> None:
    for _ in range(times):
        pace.learn(
            made,
            path,
            WENT if stages is None else stages,
            made.cached if cached is None else cached,
        )


@pytest.mark.parametrize(
    ("gpu", "dram", "tokens", "held", "loads"),
    [
        (3, 0, 100, 96, 0),
        (3, 0, 96, 64, 0),  # an engine's own hit ends before the last token, at a block
        (0, 8, 256, 255, 255),  # a load may end within one
        (2, 8, 96, 64, 0),  # nothing but the last block is missing: not worth a load
        (1, 8, 600, 256, 224),
        (1, 15, 600, 256, 224),  # of the second chunk the last block is another prompt's
        (9, 15, 600, 288, 0),
        (0, 16, 512, 511, 511),
        (8, 1, 600, 256, 0),
        (0, 0, 0, 0, 0),
    ],
)
def test_what_an_engine_counts_as_held(
    gpu: int, dram: int, tokens: int, held: int, loads: int
) -> None:
    counted = holdings(np.array([gpu]), np.array([dram]), tokens, BLOCK, CHUNK)
    assert [one.tolist() for one in counted] == [[held], [loads]]


def test_the_parts_add_up_and_are_told_in_milliseconds() -> None:
    made = Pace(CURVE).paired(given(0, 0.6, work=0.02), 600, 0, waited=1.0, busy=False)
    assert made.ttft == pytest.approx(made.waited + made.before + 0.6 + made.after)
    told = made.told()
    assert told["cached"] == 0
    assert told["ttft"] == pytest.approx(1000 * made.ttft, abs=0.01)
    assert told["queue"] + told["prefill"] + told["after"] == pytest.approx(told["ttft"], abs=0.01)


def test_what_comes_before_and_after_is_learnt() -> None:
    pace = Pace(CURVE)
    made = pace.paired(given(0, 0.6, work=0.02), 600, 0, waited=0.1, busy=False)
    assert made.ttft < 0.8
    went(pace, made)
    again = pace.paired(given(0, 0.6), 600, 0, waited=0.0, busy=False)
    assert again.before == pytest.approx(0.030, rel=0.05)  # 150 ms less 100 waited and 20 of others
    assert again.after == pytest.approx(0.080, rel=0.05)


def test_loading_costs_by_the_token() -> None:
    pace = Pace(CURVE)
    for loads, queue in ((0, 20.0), (512, 71.2), (1024, 122.4)):
        made = pace.paired(given(loads, 0.1, loads=loads), 1100, 0, waited=0.0, busy=False)
        went(pace, made, {**WENT, "route": 0.0, "queue": queue})
    assert pace.loading(512.0) == pytest.approx(0.0512, rel=0.1)
    assert pace.loading(0.0) == 0.0
    loaded = pace.paired(
        given(512, 0.15, loads=512, loading=0.0512), 600, 0, waited=0.0, busy=False
    )
    assert loaded.before == pytest.approx(0.0712, rel=0.1)
    assert loaded.prefill == pytest.approx(0.15 - 0.0512)


def test_what_is_only_shipped_is_not_computed() -> None:
    pace = Pace(CURVE)
    made = pace.paired(given(576, 0.05), 600, 64, waited=0.0, busy=False)
    assert (made.prefill, made.late) == (0.0, 536)
    went(pace, made)
    assert pace.after(536, busy=False) == pytest.approx(
        0.480, rel=0.05
    )  # its prefill stage is shipping
    assert pace.paired(given(576, 0.05, loads=64), 600, 0, waited=0.0, busy=False).prefill == 0.05


@pytest.mark.parametrize(
    ("held", "decode", "late"), [(0, 0, STEP_TOKENS), (900, 0, 100), (0, 960, 40)]
)
def test_only_what_the_last_step_computed_is_shipped_late(
    held: int, decode: int, late: int
) -> None:
    assert Pace(CURVE).paired(given(held, 1.0), 1000, decode, waited=0.0, busy=False).late == late


def test_decode_alone() -> None:
    pace = Pace(CURVE)
    made = pace.alone(200, 192, waited=0.5, busy=False)
    assert (made.path, made.cached) == ("decode-only", 192)
    went(pace, made, {"route": 500.0, "queue": 20.0, "prefill": 80.0}, "decode-only")
    assert pace.alone(200, 192, waited=0.0, busy=False).ttft == pytest.approx(0.1, rel=0.05)


def test_decode_takes_longer_where_it_has_others_too() -> None:
    pace = Pace(CURVE)
    for _ in range(5):
        pace.prefill.add(Sample(100, 0, 0.5))
    guessed = pace.alone(100, 0, waited=0.0, busy=True)
    assert guessed.ttft == pytest.approx(0.5, rel=0.1)  # as prefill does, until it was seen
    idle, busy = (pace.alone(100, 0, waited=0.0, busy=one) for one in (False, True))
    went(pace, idle, {"route": 0.0, "queue": 5.0, "prefill": 95.0}, "decode-only")
    assert pace.alone(100, 0, waited=0.0, busy=True).ttft == pytest.approx(0.1, rel=0.05)
    went(pace, busy, {"route": 0.0, "queue": 80.0, "prefill": 120.0}, "decode-only")
    took = [pace.alone(100, 0, waited=0.0, busy=one).ttft for one in (False, True)]
    assert took == [pytest.approx(0.1, rel=0.05), pytest.approx(0.2, rel=0.05)]


def test_another_path_or_silent_workers_teach_nothing() -> None:
    pace = Pace(CURVE)
    made = pace.paired(given(0, 0.6), 600, 0, waited=0.0, busy=False)
    before = pace.paired(given(0, 0.6), 600, 0, waited=0.0, busy=False)
    went(pace, made, path="recomputed")
    went(pace, made, {})
    went(pace, made, {"route": 5.0, "first_decode": 900.0})
    assert pace.paired(given(0, 0.6), 600, 0, waited=0.0, busy=False) == before


def test_a_load_that_did_not_happen_says_nothing_of_loads() -> None:
    pace = Pace(CURVE)
    made = pace.paired(given(512, 0.1, loads=512), 600, 0, waited=0.0, busy=False)
    usual = pace.loading(512.0)
    went(pace, made, cached=0)
    assert pace.loading(512.0) == usual
    assert pace.after(made.late, busy=False) == pytest.approx(0.080, rel=0.05)


def test_a_few_lies_change_little() -> None:
    pace = Pace(CURVE)
    made = pace.paired(given(0, 0.6), 600, 0, waited=0.0, busy=False)
    went(pace, made, times=90)
    lies = ({**WENT, "prefill": 480.0, "ship": 0.0, "handover": 0.0, "first_decode": 0.0}, WENT)
    for stages in (lies[0], {**WENT, "first_decode": 60_000.0}):
        went(pace, made, stages, times=5)
    assert pace.after(made.late, busy=False) == pytest.approx(0.080, rel=0.25)
