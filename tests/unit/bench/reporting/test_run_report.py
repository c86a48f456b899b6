"""What the report of a run shows, and in which order."""

import msgspec
import pytest

from bench.records import STAGES
from bench.reporting.document import TOO_FEW, Ecdf, HeatStrip, Lines, Section, StackedBars, Table
from bench.reporting.page import render_page
from bench.reporting.run_report import run_document
from bench.reporting.text import render_text
from bench.reporting.timeline import timeline
from tests.support.reports import a_run


def sections(count: int, *, tells: bool = True, failing: int = 0) -> dict[str, Section]:
    document = run_document(*a_run(count, tells=tells, failing=failing))
    return {section.heading: section for section in document.sections}


def table(section: Section, number: int = 0) -> Table:
    return [block for block in section.blocks if isinstance(block, Table)][number]


def test_errors_come_before_latencies_and_only_if_there_are_any() -> None:
    assert "Errors" not in sections(30)
    failed = sections(30, failing=4)
    assert list(failed)[:2] == ["Errors", "Latency and throughput"]
    assert table(failed["Errors"]).rows == [("HTTP 503: no capacity left", 4)]


def test_latencies_are_told_in_order_with_percentiles_that_have_samples() -> None:
    rows = {row[0]: row[1:] for row in table(sections(300)["Latency and throughput"]).rows}
    assert list(rows) == [
        "TTFT", "first ITL", "ITL", "TPOT", "E2E", "TTFT, service time", "E2E, service time",
        "schedule lag",
    ]  # fmt: skip
    assert rows["schedule lag"][0] == pytest.approx(1.0)
    assert rows["TTFT"][4] == TOO_FEW  # p99 of 300
    assert rows["TTFT"][-1] == 300
    assert rows["TTFT"][1] == pytest.approx(155, rel=0.1)
    assert isinstance(rows["ITL"][4], float)


def test_figures_beside_the_latencies_repeat_none_of_them() -> None:
    names = [row[0] for row in table(sections(30)["Latency and throughput"], 1).rows]
    assert "request_throughput" in names
    assert not [name for name in names if str(name).endswith("_ms")]


def test_distributions_are_of_the_measured_and_answered_requests() -> None:
    result, records = a_run(40, failing=5)
    warm = [msgspec.structs.replace(record, phase="warm") for record in records]
    document = run_document(result, [*warm, *records])
    ttft, between = next(s for s in document.sections if s.heading == "Distributions").blocks
    assert isinstance(ttft, Ecdf)
    assert isinstance(between, Ecdf)
    good = [record for record in records if record.ok]
    assert list(ttft.series[0].values) == [record.ttft * 1000 for record in good]
    assert list(ttft.series[1].values) == [record.service_ttft * 1000 for record in good]
    assert len(between.series[0].values) == sum(len(record.gaps) for record in good)
    assert ttft.limit is not None
    assert (ttft.limit.value, ttft.limit.label) == (200, "chat: TTFT ≤ 200 ms")


def test_stages_are_shown_in_order_where_the_server_tells_them() -> None:
    heading = "Where the first token's time goes"
    assert heading not in sections(30, tells=False)
    told = sections(30)[heading]
    (bar,) = [block for block in told.blocks if isinstance(block, StackedBars)]
    names = [name.replace("handover", "hand-over").replace("_", " ") for name in STAGES]
    assert [part.name for part in bar.parts] == names
    assert bar.parts[2].values[0] == pytest.approx(100, rel=0.2)
    assert table(told, 1).rows[0][:2] == ["disaggregated", 30]


def test_the_hit_ratio_is_told_as_intended_as_achieved_and_by_tier() -> None:
    rows = {row[0]: row[1] for row in table(sections(30)["Prompt cache"]).rows}
    assert rows == {
        "intended": pytest.approx(30), "achieved": pytest.approx(30),
        "from gpu": pytest.approx(20), "from dram": pytest.approx(10),
    }  # fmt: skip


def test_tenants_are_shown_if_there_are_several() -> None:
    told = sections(30)["Tenants"]
    assert [row[:3] for row in table(told).rows] == [[f"tenant-{i}", 10, 0] for i in range(3)]
    result, records = a_run(30)
    alone = msgspec.structs.replace(result, tenants=result.tenants[:1])
    assert "Tenants" not in [one.heading for one in run_document(alone, records).sections]


def test_every_setting_and_the_environment_are_listed() -> None:
    page = render_page(run_document(*a_run(3)))
    for text in ("prompt.shared", "engine.flags", "9c2f" * 16, "two cores"):
        assert text in page


def test_a_timeline_counts_every_request_once_and_none_is_in_flight_at_the_end() -> None:
    _, records = a_run(200, failing=20)
    strip, flight, rates, tokens = timeline(records)
    assert isinstance(strip, HeatStrip)
    assert sum(map(sum, strip.counts)) == 180
    assert isinstance(flight, Lines)
    assert flight.series[0].y[-1] == 0
    assert max(flight.series[0].y) >= 1
    assert isinstance(rates, Lines)
    width = strip.x_edges[1] - strip.x_edges[0]
    totals = {one.name: sum(one.y[1:-1]) * width for one in rates.series}
    assert totals == {
        "planned": pytest.approx(200), "answered": pytest.approx(180), "failed": pytest.approx(20)
    }  # fmt: skip
    assert isinstance(tokens, Lines)
    carried = sum(record.output_tokens or 0 for record in records)
    assert sum(tokens.series[0].y[1:-1]) * width == pytest.approx(carried)


def test_a_slow_second_is_seen_where_it_was() -> None:
    _, records = a_run(200)
    slow = [
        msgspec.structs.replace(r, tokens=tuple(at + 3 for at in r.tokens), finished=r.finished + 3)
        if 10 <= r.intended < 11
        else r
        for r in records
    ]
    strip = timeline(slow)[0]
    assert isinstance(strip, HeatStrip)
    assert strip.log_y
    columns = {i for i, column in enumerate(strip.counts) if sum(column[-4:])}
    assert columns
    assert all(8 < strip.x_edges[i] < 12 for i in columns)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_of_hardly_any_request_has_a_report(count: int) -> None:
    result, records = a_run(count)
    document = run_document(result, records)
    assert render_page(document).endswith("</html>\n")
    assert result.verdict.sentence.split()[0] in render_text(document)


def test_a_run_without_an_answer_has_a_report() -> None:
    result, records = a_run(4, failing=4)
    text = render_text(run_document(result, records))
    assert "4 of 4 requests failed" in text
    assert "there is no latency" in text
