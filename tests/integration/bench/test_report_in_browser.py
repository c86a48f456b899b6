"""The written report, opened in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.document import Document, Paragraph, Section, Table
from bench.reporting.files import write_run
from bench.reporting.page import render_page
from bench.reporting.svg import standalone_svg
from bench.result import Verdict
from tests.support.browser import COMMAND, Page, browser
from tests.support.reports import a_run, every_plot

pytestmark = pytest.mark.skipif(COMMAND is None, reason="no Chromium is installed")

WIDTHS = (360, 1100)
LONG = "a-tenant-or-model-whose-name-is-longer-than-a-phone-is-wide-" * 3

# Boxes of all texts and of the drawings they are in, in the drawing's own units.
TEXTS_OUTSIDE = """
[...document.querySelectorAll('svg text')].filter(text => {
  const box = text.getBBox(), view = text.closest('svg').viewBox.baseVal;
  return box.x < view.x - 1 || box.x + box.width > view.x + view.width + 1
      || box.y < view.y - 1 || box.y + box.height > view.y + view.height + 1;
}).map(text => text.textContent)
"""
TEXTS_OVER_EACH_OTHER = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBBox()]);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([_, b]) =>
    a.x + 1 < b.x + b.width && b.x + 1 < a.x + a.width &&
    a.y + 3 < b.y + b.height && b.y + 3 < a.y + a.height).map(([other, _]) => one + ' | ' + other));
})
"""
SIZES = """
[...document.querySelectorAll('svg.plot')].map(svg => {
  const box = svg.getBoundingClientRect();
  return [box.width, box.height];
})
"""
TEXT_SIZES = """
[...document.querySelectorAll('svg.plot text')].map(
  text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    runs = {
        "full": a_run(400, failing=7),
        "without stages": a_run(40, tells=False),
        "one": a_run(1),
        "none": a_run(0),
        "all failed": a_run(5, failing=5),
    }
    for name, (result, records) in runs.items():
        write_run(folder / name, result, records)
    paths = {name: folder / name / "report.html" for name in runs}
    paths["plots"] = folder / "plots.html"
    paths["plots"].write_text(render_page(_gallery()))
    return paths


def _gallery() -> Document:
    values = [12.0, 80.5, 3.25, 41.0]
    blocks = [plot for name in ("short", LONG) for plot in every_plot(values, name)]
    table = Table([LONG, "n"], [[LONG, 1.0], ["a", None]], LONG, LONG)
    verdict = Verdict(valid=False, sentence=LONG, reasons=("because",))
    sections = [Section("Plots", [*blocks, table, Paragraph(LONG)])]
    return Document(LONG, LONG, verdict, sections)


def complaints(events: list[dict[str, Any]]) -> list[str]:
    return [
        str(event["params"])
        for event in events
        if event["method"]
        in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    ]


def requested(events: list[dict[str, Any]]) -> list[str]:
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["full", "without stages", "one", "none", "all failed", "plots"])
def test_a_report_is_whole_and_readable(
    page: Page, reports: dict[str, Path], name: str, width: int
) -> None:
    page.events.clear()
    page.show(reports[name].as_uri(), width)
    assert requested(page.events) == [reports[name].as_uri()]
    assert complaints(page.events) == []
    assert page.ask("document.querySelectorAll('svg.plot').length") >= 2
    assert page.ask(OVERFLOW) == 0
    assert page.ask(TEXTS_OUTSIDE) == []
    assert page.ask(TEXTS_OVER_EACH_OTHER) == []
    sizes = page.ask(SIZES)
    assert all(280 <= wide <= width and tall >= 50 for wide, tall in sizes)
    assert all(size >= 9.5 for size in page.ask(TEXT_SIZES))


def test_a_page_follows_the_readers_choice_of_light_or_dark(
    page: Page, reports: dict[str, Path]
) -> None:
    colours = []
    for dark in (False, True):
        page.show(reports["full"].as_uri(), 1100, dark=dark)
        ink = "getComputedStyle(document.querySelector('svg text')).fill"
        line = "getComputedStyle(document.querySelector('svg .line')).stroke"
        colours.append([page.ask(GROUND), page.ask(ink), page.ask(line)])
    light, dark_ones = colours
    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark_ones, strict=True))


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_stands_out_from_its_ground(
    page: Page, reports: dict[str, Path], dark: bool
) -> None:
    page.show(reports["full"].as_uri(), 1100, dark=dark)
    names = ["ink", "soft", "neutral", "good", "bad", *(f"c{i}" for i in range(1, 7))]
    for name in names:
        ratio = page.ask(CONTRAST % name)
        assert ratio >= 4.5, (name, ratio)


CONTRAST = """
(() => {
  const light = name => {
    const probe = document.createElement('i');
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(part => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const [low, high] = [light('ground'), light('%s')].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
})()
"""


def test_a_drawing_of_its_own_is_shown(page: Page, tmp_path: Path) -> None:
    for index, plot in enumerate(every_plot([3.0, 1.0, 2.0], "a plot")):
        path = tmp_path / f"{index}.svg"
        path.write_text(standalone_svg(plot))
        page.events.clear()
        page.show(path.as_uri(), 800)
        assert complaints(page.events) == []
        assert requested(page.events) == [path.as_uri()]
        assert page.ask("document.querySelector('.heading').getBBox().width") > 30
        assert page.ask("document.querySelector('svg.plot').getBoundingClientRect().width") > 300


def test_the_checks_see_a_page_that_is_broken(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text(
        '<img src="missing.png"><script>console.error("no")</script>'
        '<div style="width:2000px">wide</div><svg class="plot" viewBox="0 0 100 100">'
        '<text x="90" y="50">far too long</text><text x="88" y="52">over it</text></svg>'
    )
    page.events.clear()
    page.show(path.as_uri(), 360)
    assert complaints(page.events)
    assert len(requested(page.events)) == 2
    assert page.ask(OVERFLOW) > 0
    assert "far too long" in page.ask(TEXTS_OUTSIDE)
    assert page.ask(TEXTS_OVER_EACH_OTHER) == ["far too long | over it"]
