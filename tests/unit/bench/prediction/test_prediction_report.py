"""What is judged, and what counts as right."""

from __future__ import annotations

from typing import Any

import pytest

from bench.client import Timeline, failed
from bench.load.schedule import Segment
from bench.prediction import report
from bench.prediction.asking import Asked, asked
from bench.prediction.load import Wanted
from bench.reporting.text import render_text

WANTED = Wanted(7, 0.0, "novel", 0, Segment("novel-7", 100), 4)


def one(number: int = 0, **fields: Any) -> Asked:
    told: dict[str, Any] = {
        "path": "disaggregated",
        "prompt": 100,
        "cached": 64,
        "predicted_cached": 64,
        "ttft": 1.0,
        "predicted_ttft": 1.1,
    }
    return Asked(number=number, at=0.0, kind="chat", **{**told, **fields})


def timeline(**fields: Any) -> Timeline:
    told: dict[str, Any] = {
        "intended": 0.0,
        "sent": 1.0,
        "tokens": (3.0, 4.0),
        "finished": 4.0,
        "status": 200,
        "error": "",
        "prompt_tokens": 100,
        "completion_tokens": 2,
        "cached_tokens": 64,
        "headers": {"x-kvferry-path": "decode-only"},
    }
    return Timeline(**{**told, **fields})


def test_the_actual_ttft_counts_from_the_send() -> None:
    trailer = {"predicted": {"cached": 64, "ttft": 1500.0}, "stages": {"route": 1.0}}
    found = asked(WANTED, timeline(trailer=trailer), 1.0)
    assert (found.ttft, found.ratio, found.equal) == (2.0, 0.75, True)
    assert found.path == "decode-only"


def test_nothing_predicted_is_not_right() -> None:
    found = asked(WANTED, timeline(), 1.0)
    assert (found.ratio, found.equal) == (None, False)
    lost = asked(WANTED, failed(0.0, "cut"), 1.0)
    assert (lost.error, lost.equal) == ("cut", False)
    valid = report.verdict([found] * report.MEANT, 0.0)
    assert not valid.valid
    assert "the server predicts nothing" in valid.reasons


@pytest.mark.parametrize(("wrong", "kept"), [(5, True), (6, False)])
def test_cached_tokens_are_equal_in_99_of_100(wrong: int, kept: bool) -> None:
    found = [one(at, cached=0 if at < wrong else 64) for at in range(report.MEANT)]
    assert report.verdict(found, 0.0).valid == kept
    assert report.metrics(found)["equal_cached_share"] == 1 - wrong / report.MEANT


@pytest.mark.parametrize(("predicted", "kept"), [(1.24, True), (0.76, True), (1.26, False)])
def test_the_median_request_is_within_a_quarter(predicted: float, kept: bool) -> None:
    found = [one(at, predicted_ttft=predicted if at < 251 else 1.0) for at in range(report.MEANT)]
    assert report.verdict(found, 0.0).valid == kept


def test_every_request_is_kept_with_its_parts() -> None:
    told = {"cached": 64, "ttft": 1500.0, "queue": 900.0, "prefill": 500.0, "after": 100.0}
    stages = {"route": 1.0, "queue": 800.0, "prefill": 600.0, "handover": 5.0, "first_decode": 60.0}
    trailer = {"predicted": told, "stages": stages, "cached": {"gpu": 32, "dram": 32}}
    detail = report.detail([asked(WANTED, timeline(trailer=trailer), 1.0)])
    columns, (row,) = detail["columns"], detail["requests"]
    kept = dict(zip(columns, row, strict=True))
    assert (kept["cached_gpu"], kept["cached_dram"], kept["predicted_cached"]) == (32, 32, 64)
    assert (kept["queue"], kept["predicted_queue"]) == (801.0, 900.0)
    assert (kept["after"], kept["predicted_after"]) == (65.0, 100.0)
    assert (kept["ttft"], kept["predicted_ttft"]) == (2000.0, 1500.0)


def test_few_or_failed_requests_judge_nothing() -> None:
    found = [one(at) for at in range(report.MEANT)]
    assert report.verdict(found, 0.0).valid
    assert not report.verdict(found[1:], 0.0).valid
    assert not report.verdict([*found, Asked(number=9, at=0.0, kind="chat", error="x")], 0.0).valid


def test_the_report_names_who_was_furthest_off() -> None:
    found = [one(at) for at in range(30)]
    found += [one(901, ttft=9.0), one(902, cached=0, path="decode-only")]
    text = render_text(report.document(found, "", report.verdict(found, 0.0)))
    assert "901" in text.split("TTFT FURTHEST OFF")[1]
    assert "902" in text.split("OTHER TOKENS THAN PREDICTED")[1].split("TTFT FURTHEST OFF")[0]
    assert report.metrics(found)["decode-only_equal_cached_share"] == 0.0


def test_nothing_found_where_nothing_was_foretold_proves_little() -> None:
    nothing = [one(cached=0, predicted_cached=0) for _ in range(report.MEANT)]
    told = report.verdict(nothing, 0.0)
    assert not told.valid
    assert "only 0 requests found anything" in told.reasons[0]
    assert report.metrics([one(), *nothing])["hits"] == 1
