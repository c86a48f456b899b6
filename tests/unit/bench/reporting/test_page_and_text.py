"""Documents as pages and as terminal text."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reporting.document import (
    TOO_FEW,
    Bars,
    BarSeries,
    Block,
    Document,
    Paragraph,
    Section,
    Table,
)
from bench.reporting.page import render_page
from bench.reporting.text import render_table, render_text
from bench.reporting.wording import tell
from bench.result import Verdict
from tests.support.reports import every_plot

CALM = settings(max_examples=50, deadline=None)
TABLE = Table(
    ["name", "p50", "p99", "count"],
    [["TTFT", 153.21, TOO_FEW, 1467], ["lag", 0.1267, None, 3]],
    note="Milliseconds.",
)


class Reader(HTMLParser):
    """Collects tags, attributes and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def document(name: str = "a run", reasons: tuple[str, ...] = ()) -> Document:
    blocks: list[Block] = [Paragraph(name, "warning"), Table([name], [[name]], name, name)]
    verdict = Verdict(valid=False, sentence=name, reasons=reasons)
    return Document(name, name, verdict, [Section(name, [*blocks, *every_plot([1.0, 2.0], name)])])


@CALM
@given(st.text(min_size=1, max_size=40))
def test_no_text_becomes_markup(name: str) -> None:
    plain, marked = Reader(render_page(document("name"))), Reader(render_page(document(name)))
    # Names decide only which texts of a plot fit where, so compare what no drawing emits.
    drawing = {"line", "text", "path", "rect", "circle", "title", "svg"}
    assert [t for t in plain.tags if t not in drawing] == [
        t for t in marked.tags if t not in drawing
    ]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x>', "]]><b>", "&lt;"])
def test_markup_in_a_name_is_shown_as_it_is(name: str) -> None:
    reader = Reader(render_page(document(name)))
    assert not {"script", "img", "b"} & set(reader.tags)
    assert name in reader.text


def test_a_page_refers_to_nothing() -> None:
    page = render_page(document())
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(reader.tags)
    assert not {"src", "href", "xlink:href", "srcset"} & {name for name, _ in reader.attributes}
    assert not [value for _, value in reader.attributes if "//" in (value or "")]
    assert "url(" not in page
    assert "@import" not in page


def test_a_reason_that_the_sentence_tells_is_not_told_twice() -> None:
    verdict = Verdict(valid=False, sentence="INVALID: late.", reasons=("late", "cold caches"))
    report = Document("t", "s", verdict, [])
    assert report.reasons == ["cold caches"]
    assert render_text(report) == "t\ns\n\nINVALID: late.\n  - cold caches\n"
    assert render_page(report).count("<li>") == 1
    assert 'class="verdict bad"' in render_page(report)


def test_numbers_stand_to_the_right_and_names_to_the_left() -> None:
    assert render_table(TABLE).splitlines() == [
        "name    p50              p99  count",
        "────  ─────  ───────────────  ─────",
        "TTFT    153  too few samples  1,467",
        "lag   0.127                –      3",
    ]


def test_a_column_of_withheld_percentiles_is_one_of_numbers() -> None:
    assert Table(["p99"], [[TOO_FEW]]).numeric(0)
    assert not Table(["error"], [["cut"], [None]]).numeric(0)


def test_text_leaves_plots_out_and_sections_for_the_page_alone() -> None:
    plot = Bars("Hits", ["a"], [BarSeries("s", [1.0])], "x")
    sections = [
        Section("Latency", [TABLE, plot]),
        Section("Plots", [plot]),
        Section("Settings", [TABLE], page_only=True),
    ]
    report = Document("t", "", Verdict(valid=True, sentence="VALID."), sections)
    text = render_text(report)
    assert "LATENCY\nname" in text
    assert text.rstrip().endswith("Milliseconds.")
    assert "HITS" not in text.upper()
    assert "PLOTS" not in text
    assert "SETTINGS" not in text
    assert "Settings" in render_page(report)


@CALM
@given(st.text(max_size=60))
def test_no_text_commands_a_terminal(name: str) -> None:
    text = render_text(document(name + "\x1b[2J\x07\r"))
    assert all(character == "\n" or character >= " " for character in text)
    assert not any("\x7f" <= character <= "\x9f" for character in text)


def test_wide_characters_keep_the_columns() -> None:
    _, rule, wide, plain = render_table(
        Table(["tenant", "n"], [["東京", 1], ["tokyo", 2]])
    ).splitlines()
    assert len(rule) == len(plain) == len(wide) + 2


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells in 2 columns"):
        Table(["a", "b"], [["x"]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), ("x", "x"), (0, "0"), (1467, "1,467"), (0.0, "0"), (1234.56, "1,235"),
        (99.97, "100"), (99.9, "99.9"), (9.996, "10.0"), (1.234, "1.23"), (0.5, "0.500"),
        (0.0123, "0.012"), (-12.34, "-12.3"), (3e-7, "3e-07"), (2.5e12, "2.5e+12"),
        (float("inf"), "inf"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_a_number_is_told_with_three_digits(value: float | str | None, text: str) -> None:
    assert tell(value) == text
