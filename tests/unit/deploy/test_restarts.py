"""Restarting: quickly after a chance failure, slowly in a loop, never for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.restarts import STEADY_SECONDS, Restarts


def test_pauses_double_and_then_it_is_given_up() -> None:
    restarts = Restarts()
    assert [restarts.after(1.0) for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, None]


def test_a_steady_run_is_forgiven() -> None:
    restarts = Restarts()
    for _ in range(100):
        assert restarts.after(STEADY_SECONDS) == restarts.first_pause


@given(st.lists(st.floats(0, 200), max_size=60))
def test_pauses_are_bounded_and_only_short_runs_in_a_row_end_it(runs: list[float]) -> None:
    restarts, short = Restarts(limit=4), 0
    for run in runs:
        pause = restarts.after(run)
        short = 1 if run >= STEADY_SECONDS else short + 1
        if pause is None:
            assert short >= 4
            return
        assert short < 4
        assert restarts.first_pause <= pause <= restarts.longest_pause
