"""Figures, ratios and judgements from seconds that are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.reporting.page import render_page
from bench.reporting.text import render_text
from bench.transport import report
from bench.transport.case import Case
from bench.transport.contender import Kvferry, Memcpy, Mooncake
from bench.transport.figures import Judgement, Taken, judge, row
from bench.transport.goals import SHARED_OUT, Candidate, Figure, Goal

OURS, OTHER = Figure(Kvferry("shm"), Case(16)), Figure(Kvferry("zmq+tcp"), Case(16))
LIMIT = Figure(Memcpy(), Case(16))
AT_LEAST = Goal("enough", "rate", "at least", 0.8, [Candidate(OURS, LIMIT)])
AT_MOST = Goal("little", "time", "at most", 1.5, [Candidate(OURS, LIMIT)])


def steady(seconds: float, rounds: int = 10) -> list[list[float]]:
    return [[seconds] * 3 for _ in range(rounds)]


def judged(goal: Goal, ours: Sequence[Sequence[float]]) -> Judgement:
    return judge(goal, {OURS: ours, LIMIT: steady(1.0, len(ours))}, {})


def test_a_rate_is_higher_where_seconds_are_fewer() -> None:
    found = judged(AT_LEAST, steady(0.5))
    assert found.value == pytest.approx(2.0)
    assert [found.low, found.high] == pytest.approx([2.0, 2.0])
    assert found.outcome == "kept"


def test_a_time_is_longer_where_seconds_are_more() -> None:
    found = judged(AT_MOST, steady(2.0))
    assert found.value == pytest.approx(2.0)
    assert found.outcome == "short"


def test_times_are_for_each_byte() -> None:
    small, large = Figure(Memcpy(), Case(1)), Figure(Memcpy(), Case(4))
    goal = Goal("per_byte", "time", "at most", 1.5, [Candidate(small, large)])
    found = judge(goal, {small: steady(1.0), large: steady(2.0)}, {})
    assert found.value == pytest.approx(2.0)


def test_the_middle_move_of_a_round_is_its_figure() -> None:
    rounds = [[0.5, 1.0, 50.0] for _ in range(10)]
    assert judged(AT_LEAST, rounds).value == pytest.approx(1.0)


def test_ratios_are_taken_within_a_round() -> None:
    drifting = [[2.0**number] for number in range(10)]
    found = judge(AT_LEAST, {OURS: drifting, LIMIT: drifting}, {})
    assert [found.low, found.high] == pytest.approx([1.0, 1.0])


NOISY = [[1.0 + 0.3 * (number % 3)] for number in range(12)]


def test_the_worse_end_of_the_interval_decides() -> None:
    most, least = judged(AT_MOST, NOISY), judged(AT_LEAST, NOISY)
    assert most.value is not None
    assert most.high is not None
    assert least.low is not None
    assert least.value is not None
    beyond, within = (most.value + most.high) / 2, most.high + 0.01
    for limit, outcome in ((beyond, "short"), (within, "kept")):
        goal = Goal("m", "time", "at most", limit, AT_MOST.candidates)
        assert judged(goal, NOISY).outcome == outcome
    beyond, within = (least.value + least.low) / 2, least.low - 0.01
    for limit, outcome in ((beyond, "short"), (within, "kept")):
        goal = Goal("m", "rate", "at least", limit, AT_LEAST.candidates)
        assert judged(goal, NOISY).outcome == outcome


@pytest.mark.parametrize(("goal", "value"), [(AT_LEAST, 0.25), (AT_MOST, 4.0)])
def test_a_goal_is_as_good_as_its_worst_candidate(goal: Goal, value: float) -> None:
    both = Goal(
        goal.metric,
        goal.of,
        goal.kind,
        goal.limit,
        [Candidate(OURS, LIMIT), Candidate(OTHER, LIMIT)],
    )
    seconds = {OURS: steady(1.0), OTHER: steady(4.0), LIMIT: steady(1.0)}
    found = judge(both, seconds, {})
    assert found.value == pytest.approx(value)
    assert found.of == "zmq+tcp, 1 MiB contiguous / memcpy"


def test_without_a_divisor_it_is_microseconds() -> None:
    goal = Goal("one_block_us", "time", "at most", 500.0, [Candidate(OURS)])
    found = judge(goal, {OURS: steady(250e-6)}, {})
    assert found.value == pytest.approx(250.0)
    assert found.outcome == "kept"


def test_without_a_limit_it_is_told() -> None:
    found = judged(Goal("m", "rate", "told", None, AT_LEAST.candidates), steady(4.0))
    assert found.value == pytest.approx(0.25)
    assert found.outcome == "told"


def test_few_rounds_give_a_value_and_no_judgement() -> None:
    found = judged(AT_LEAST, steady(0.5, rounds=7))
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high) == (None, None)
    assert found.outcome == "not judged"


def test_a_missing_peer_leaves_its_ratio_out_and_says_why() -> None:
    theirs = Figure(Mooncake(), Case(16))
    goal = Goal("m", "rate", "at least", 2.0, [Candidate(OURS, theirs)])
    found = judge(goal, {OURS: steady(1.0)}, {Mooncake(): "not installed"})
    assert (found.outcome, found.value, found.reason) == ("not measured", None, "not installed")


def test_a_size_that_was_not_asked_for_leaves_its_ratio_out() -> None:
    found = judge(AT_LEAST, {OURS: steady(1.0)}, {})
    assert found.outcome == "not measured"
    assert found.reason == "memcpy, 1 MiB contiguous, was not in this run"


def test_a_row_has_the_median_of_all_moves_and_bytes_a_second() -> None:
    told = row(LIMIT, [[1.0, 2.0], [3.0, 4.0, 9.0]])
    assert (told.p50, told.longest, told.rate) == (3.0, 9.0, (1 << 20) / 3.0)
    assert told.p99 is None


def test_a_99th_percentile_wants_a_thousand_moves() -> None:
    moves = [float(number) for number in range(1, 1001)]
    assert row(LIMIT, [moves[:500], moves[500:]]).p99 == pytest.approx(990.01)
    assert row(LIMIT, [moves[:999]]).p99 is None


KEPT, SHORT = judged(AT_LEAST, steady(0.5)), judged(AT_MOST, steady(2.0))
UNJUDGED = judged(AT_LEAST, steady(0.5, rounds=1))


def test_only_a_run_whose_goals_are_all_kept_is_valid() -> None:
    assert report.verdict([KEPT], Taken()).valid
    short = report.verdict([KEPT, SHORT], Taken())
    assert (short.valid, short.sentence) == (False, "SHORT of its bounds: little.")
    unjudged = report.verdict([UNJUDGED], Taken())
    assert not unjudged.valid
    assert unjudged.sentence == "not judged, for want of 8 rounds: enough."


def test_missing_peers_and_a_busy_machine_are_complained_about() -> None:
    taken = Taken(missing={Mooncake(): "run `make peers`"}, others=0.5)
    reasons = report.verdict([KEPT], taken).reasons
    assert reasons == ("Mooncake: run `make peers`", "others computed on 0.50 cores meanwhile")


def test_metrics_have_the_ends_of_intervals_where_there_are_any() -> None:
    told = report.metrics([KEPT, UNJUDGED])
    assert told == {
        "enough": pytest.approx(2.0),
        "enough_low": pytest.approx(2.0),
        "enough_high": pytest.approx(2.0),
    }
    assert report.metrics([UNJUDGED]) == {"enough": pytest.approx(2.0)}


def test_text_and_page_have_every_ratio_and_every_size() -> None:
    shared_out = Figure(Kvferry("shm"), Case(SHARED_OUT, "random", 100))
    random = [Figure(Kvferry("shm"), Case(size, "random")) for size in (4, 16)]
    switched = [Figure(Kvferry("shm", digests=True), one.case) for one in random]
    figures = (OURS, LIMIT, shared_out, *random, *switched)
    rows = [row(figure, steady(0.001)) for figure in figures]
    judgements = [KEPT, SHORT]
    found = report.document(judgements, rows, "told", report.verdict(judgements, Taken()))
    text = render_text(found)
    told = ("enough", "2.00 to 2.00", "kept", "short", "TRANSFERS AT ONCE")
    for word in (*told, "1 MiB", "1000 MiB", "memcpy", "1.05"):
        assert word in text, word
    page = render_page(found)
    assert "Throughput over size" in page
    plots = page[page.index("Throughput over size") :]
    assert plots.count("<svg") == 2
    assert "shm, digests" in page
    assert "shm, digests" not in plots
