"""Plots as SVG."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reporting.curves import STEPS
from bench.reporting.document import (
    Bars,
    BarSeries,
    Ecdf,
    HeatStrip,
    Interval,
    Limit,
    Lines,
    Plot,
    Ratio,
    Samples,
    Series,
    StackedBars,
)
from bench.reporting.drawing import WIDTH, fitted, width_of
from bench.reporting.svg import plot_svg, standalone_svg
from tests.support.reports import every_plot

CALM = settings(max_examples=50, deadline=None)
HUGE = [-1.7e308, 1.7e308]
COORDINATES = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")


def drawn(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(plot_svg(plot))


def words(plot: Plot) -> list[str]:
    return [text.text or "" for text in drawn(plot).iter("text")]


def within(svg: ElementTree.Element) -> bool:
    """Whether every coordinate lies in the viewBox, up to half a stroke."""
    _, _, width, height = (float(part) for part in svg.attrib["viewBox"].split())
    assert width == WIDTH
    numbers = [
        float(element.attrib[name])
        for element in svg.iter()
        if element is not svg
        for name in COORDINATES
        if name in element.attrib
    ]
    for path in svg.iter("path"):
        numbers += [float(one) for one in re.findall(r"-?[\d.]+(?:e-?\d+)?", path.attrib["d"])]
    return all(-1 <= value <= max(width, height) + 1 for value in numbers)


@CALM
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=6),
    st.sampled_from(range(8)),
)
def test_any_finite_values_give_xml_within_the_box(values: list[float], kind: int) -> None:
    assert within(drawn(every_plot(values)[kind]))


@pytest.mark.parametrize("values", [[], [5.0], [5.0] * 7, [0.0], HUGE, [5e-324, 1e-323]])
@pytest.mark.parametrize("kind", range(8))
def test_no_value_one_equal_ones_and_huge_ones_are_drawn(values: list[float], kind: int) -> None:
    svg = drawn(every_plot(values)[kind])
    assert within(svg)
    assert svg.attrib["aria-label"]
    if not values:
        assert [text.text for text in svg.iter("text")] == ["no data"]


@CALM
@given(st.text(max_size=60), st.sampled_from(range(8)))
def test_any_name_is_escaped(name: str, kind: int) -> None:
    plot = every_plot([1.0, 2.0, 4.0], name)[kind]
    assert within(drawn(plot))
    ElementTree.fromstring(standalone_svg(plot))


@CALM
@given(st.text(max_size=60), st.floats(20, 400))
def test_a_fitted_text_is_no_wider_than_its_room(text: str, room: float) -> None:
    assert width_of(fitted(text, room)) <= room


def test_the_same_plot_gives_the_same_bytes() -> None:
    first, second = ([plot_svg(plot) for plot in every_plot([3.0, 1.0, 2.0])] for _ in range(2))
    assert first == second


def test_values_that_are_not_finite_are_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    with_holes = Lines("t", [Series("s", [0, 1, 2, 3], [1, nan, inf, 4])], "x", "y")
    without = Lines("t", [Series("s", [0, 3], [1, 4])], "x", "y")
    assert plot_svg(with_holes) == plot_svg(without)
    assert words(Ecdf("t", [Samples("s", [nan, inf])], "x")) == ["no data"]


def test_a_line_goes_from_its_first_point_to_its_last() -> None:
    svg = drawn(Lines("t", [Series("s", [0, 5, 10], [0, 20, 10])], "x", "y"))
    (path,) = svg.iter("path")
    points = [tuple(map(float, at.split(","))) for at in path.attrib["d"][1:].split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y0  # more is higher up
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)


def test_an_ecdf_of_many_samples_is_thinned_and_keeps_its_ends() -> None:
    svg = drawn(Ecdf("t", [Samples("s", [float(i) for i in range(100_000)])], "x"))
    (path,) = svg.iter("path")
    points = [tuple(map(float, at.split(","))) for at in path.attrib["d"][1:].split("L")]
    assert STEPS <= len(points) <= 2 * STEPS + 2
    assert points[0][0] < 60
    assert points[-1][0] == pytest.approx(WIDTH - 10)


def test_half_the_samples_are_below_the_middle_of_an_ecdf() -> None:
    svg = drawn(Ecdf("t", [Samples("s", [0.0, 10.0])], "x"))
    (path,) = svg.iter("path")
    ys = [float(at.split(",")[1]) for at in path.attrib["d"][1:].split("L")]
    bottom, middle, top = max(ys), sorted(set(ys))[1], min(ys)
    assert bottom - middle == pytest.approx((bottom - top) / 2)


def test_few_short_names_stand_at_the_ends_of_their_lines_and_long_ones_in_a_legend() -> None:
    def plot(name: str) -> Lines:
        return Lines("t", [Series(n, [0, 1], [1, 1]) for n in ("one", name)], "x", "y")

    def names(svg: ElementTree.Element) -> list[ElementTree.Element]:
        return [text for text in svg.iter("text") if "name" in text.attrib.get("class", "").split()]

    beside = names(drawn(plot("two")))
    assert [text.text for text in beside] == ["one", "two"]
    first, second = (float(text.attrib["y"]) for text in beside)
    assert second - first >= 12  # the lines end at one height, their names do not collide
    long = "a name that is far too long to stand beside a line"
    assert names(drawn(plot(long))) == []
    assert long in words(plot(long))


def test_a_limit_is_drawn_and_named_and_has_room_on_its_axis() -> None:
    plot = Lines("t", [Series("s", [0, 1], [1, 2])], "x", "y", limit=Limit(900, "SLO 900 ms"))
    assert "SLO 900 ms" in words(plot)
    assert "1,000" in words(plot)
    assert sum("limit" in line.attrib.get("class", "") for line in drawn(plot).iter("line")) == 1
    assert "SLO" in words(Ecdf("t", [Samples("s", [1.0])], "x", limit=Limit(7, "SLO")))


def test_bars_are_as_long_as_their_values_and_tell_them() -> None:
    plot = Bars("t", ["a", "b"], [BarSeries("s", [10.0, 20.0]), BarSeries("r", [None, 5.0])], "x")
    widths = [float(box.attrib["width"]) for box in drawn(plot).iter("rect")][
        2:
    ]  # after the legend
    assert widths[0] * 2 == pytest.approx(widths[1], abs=0.2)
    assert widths[2] * 2 == pytest.approx(widths[0], abs=0.2)
    assert {"10.0", "20.0", "5.00"} <= set(words(plot))


def test_a_stack_tells_its_total_and_its_parts() -> None:
    plot = StackedBars("t", ["p50"], [BarSeries("a", [30.0]), BarSeries("b", [70.0])], "ms")
    assert {"30.0", "70.0", "100"} <= set(words(plot))
    a, b = [float(box.attrib["width"]) + 1 for box in drawn(plot).iter("rect")][2:]
    assert a / b == pytest.approx(3 / 7, rel=0.01)


def test_a_heat_strip_shades_by_count_and_leaves_empty_bins_out() -> None:
    plot = HeatStrip("t", [0, 1, 2], [0, 10, 20], [[9, 0], [1, 0]], "s", "ms")
    full, faint = drawn(plot).iter("rect")
    assert "fill-opacity" not in full.attrib
    assert 0 < float(faint.attrib["fill-opacity"]) < 0.6
    assert "9" in (full[0].text or "")


def test_an_interval_says_whether_it_found_a_difference() -> None:
    ratios = [
        Ratio("TTFT", 0.8, 0.7, 0.9),
        Ratio("tokens", 0.8, 0.7, 0.9, better="higher"),
        Ratio("ITL", 1.0, 0.9, 1.1),
    ]
    assert [one.outcome for one in ratios] == ["better", "worse", "no difference found"]
    told = " ".join(words(Interval("t", ratios, "B / A")))
    assert "0.800 [0.700, 0.900], better" in told
    assert "0.800 [0.700, 0.900], worse" in told
    assert "1.000 [0.900, 1.100], no difference found" in told


def test_plots_whose_parts_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 x for 2 y"):
        Series("s", [1], [1, 2])
    with pytest.raises(ValueError, match="s: 1 values for 2 bars"):
        Bars("t", ["a", "b"], [BarSeries("s", [1])], "x")
    with pytest.raises(ValueError, match="1 columns in 3 x edges"):
        HeatStrip("t", [0, 1, 2], [0, 1], [[1]], "x", "y")
    with pytest.raises(ValueError, match="does not fit 3 y edges"):
        HeatStrip("t", [0, 1], [0, 1, 2], [[1]], "x", "y")


def test_a_drawing_of_its_own_has_a_title_and_colours_for_light_and_dark() -> None:
    svg = standalone_svg(Bars("Hits <all>", ["a"], [BarSeries("s", [1.0])], "x"))
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "Hits &lt;all&gt;</text>" in svg
    assert "prefers-color-scheme:dark" in svg
