"""What is shown while a run goes on, and what stops one that cannot end."""

from __future__ import annotations

import io

from bench.driving.live import Live
from bench.driving.watching import SaturationStop
from bench.records import Record


def record(number: int, intended: float, ttft: float, **changes: object) -> Record:
    fields: dict[str, object] = {
        "number": number,
        "planned_prompt_tokens": 100,
        "planned_output_tokens": 1,
        "intended": intended,
        "sent": intended,
        "tokens": (intended + ttft,),
        "finished": intended + ttft,
        "prompt_tokens": 100,
        "cached_tokens": 30,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_tells_rate_flight_hits_latency_errors_and_time_left() -> None:
    live = Live(io.StringIO(), total=100, rate=5.0, seconds=20.0)
    live.watch([record(n, float(n), 0.2) for n in range(9)], 12, 3)
    live.watch([record(9, 9.0, 0.2, error="refused", tokens=())], 13, 3)
    line = live.line(sent=13, in_flight=3, elapsed=4.0)
    assert line.startswith("10/100  3.2/5.0 req/s  3 in flight  hit 30%")
    assert "TTFT p50 200 p99 200 ms" in line
    assert "1 errors" in line
    assert "16 s left" in line


def test_time_left_without_a_schedule_is_by_what_is_done() -> None:
    live = Live(io.StringIO(), total=40)
    live.watch([record(n, float(n), 0.2) for n in range(10)], 12, 2)
    assert "30 s left" in live.line(sent=12, in_flight=2, elapsed=10.0)


def test_a_log_gets_lines_and_a_terminal_one_that_renews_itself() -> None:
    log, terminal = io.StringIO(), Terminal()
    for out in (log, terminal):
        live = Live(out, total=4)
        live.watch([record(0, 0.0, 0.1)], 1, 0)
        live.end()
    assert log.getvalue().endswith("\n")
    assert "\r" not in log.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def stopped_after(in_flight_grows: bool, seconds: int) -> bool:
    stops: list[bool] = []
    guard = SaturationStop(lambda *_: None, lambda: stops.append(True))
    for second in range(seconds):
        waiting = second if in_flight_grows else 3 + second % 2
        ttft = 0.2 + 0.1 * waiting
        guard.watch(
            [record(2 * second + n, second - 0.5 * n, ttft) for n in range(2)], second, waiting
        )
    assert len(stops) <= 1
    assert guard.saturated == bool(stops)
    return guard.saturated


def test_growing_without_an_end_stops_a_run_once() -> None:
    assert stopped_after(in_flight_grows=True, seconds=90)
    assert not stopped_after(in_flight_grows=False, seconds=90)
    assert not stopped_after(in_flight_grows=True, seconds=10)
