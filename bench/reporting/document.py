"""What a report is made of, whichever command it comes from.

A command builds a :class:`Document`; :mod:`bench.reporting.page` and :mod:`bench.reporting.text`
turn it into a page and into terminal text. The model is closed: a new kind of block is added here,
and the type checker then names every place that must learn to draw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bench.result import Verdict

Cell: TypeAlias = str | float | None
"""A number is told with three significant digits, a whole one in full; None is a dash."""

TOO_FEW = "too few samples"
"""What stands where a percentile would be a fake one."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text. A ``warning`` is one that must not be overlooked."""

    text: str
    tone: Literal["plain", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as long as ``columns``; a column with a number in it is aligned to the right.

    Raises ValueError where a row has another length.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in {len(self.columns)} columns")

    def numeric(self, column: int) -> bool:
        """Whether that column holds numbers, or percentiles that are withheld."""
        return any(
            isinstance(row[column], (int, float)) or row[column] == TOO_FEW for row in self.rows
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """A line across a plot, such as an SLO, in the unit of the axis it belongs to."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: ``x`` and ``y`` of one length, in order. Points that are not finite are left out.

    Raises ValueError where the lengths differ.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{self.name}: {len(self.x)} x for {len(self.y)} y")


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over one x. The labels carry their unit (``TTFT p99, ms``); ``limit`` is of y."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log_x: bool = False
    limit: Limit | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """Values of one kind, in any order."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Ecdf:
    """Which share of the samples is at most x, a curve for each series; ``limit`` is of x."""

    title: str
    series: Sequence[Samples]
    x_label: str
    log_x: bool = False
    limit: Limit | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BarSeries:
    """One bar in each group; None where it has none."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars in groups, each with its value. Raises ValueError on unequal lengths."""

    title: str
    groups: Sequence[str]
    series: Sequence[BarSeries]
    x_label: str
    note: str = ""

    def __post_init__(self) -> None:
        _require_lengths(len(self.groups), self.series)


@dataclass(frozen=True, slots=True)
class StackedBars:
    """A horizontal bar for each name in ``bars``, made of the parts in order, none below zero.

    Raises ValueError on unequal lengths.
    """

    title: str
    bars: Sequence[str]
    parts: Sequence[BarSeries]
    x_label: str
    note: str = ""

    def __post_init__(self) -> None:
        _require_lengths(len(self.bars), self.parts)


@dataclass(frozen=True, slots=True)
class HeatStrip:
    """How a distribution moved over time.

    ``x_edges`` and ``y_edges`` are the bins' bounds, rising; ``counts[column][row]`` says how many
    samples fell into a bin, so there is one column fewer than there are x edges, and one row fewer
    than y edges. Raises ValueError where that does not hold.
    """

    title: str
    x_edges: Sequence[float]
    y_edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    x_label: str
    y_label: str
    log_y: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.counts) != max(0, len(self.x_edges) - 1):
            raise ValueError(f"{len(self.counts)} columns in {len(self.x_edges)} x edges")
        if any(len(column) != len(self.y_edges) - 1 for column in self.counts):
            raise ValueError(f"a column does not fit {len(self.y_edges)} y edges")


@dataclass(frozen=True, slots=True)
class Ratio:
    """One system's figure divided by another's, and the bounds of its confidence interval."""

    name: str
    ratio: float
    low: float
    high: float
    better: Literal["lower", "higher"] = "lower"

    @property
    def outcome(self) -> Literal["better", "worse", "no difference found"]:
        """What the interval allows to say."""
        if self.low <= 1.0 <= self.high:
            return "no difference found"
        return "better" if (self.high < 1.0) == (self.better == "lower") else "worse"


@dataclass(frozen=True, slots=True)
class Interval:
    """Ratios against 1.0, each with its interval. ``x_label`` says what is divided by what."""

    title: str
    ratios: Sequence[Ratio]
    x_label: str
    note: str = ""


Plot: TypeAlias = Lines | Ecdf | Bars | StackedBars | HeatStrip | Interval
Block: TypeAlias = Paragraph | Table | Plot


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a heading. Plots that follow each other stand side by side.

    ``page_only``: left out of terminal text, where it would push the figures off the screen.
    """

    heading: str
    blocks: Sequence[Block]
    page_only: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A report. The verdict stands first: a reader may stop there."""

    title: str
    subtitle: str
    verdict: Verdict
    sections: Sequence[Section]

    @property
    def reasons(self) -> list[str]:
        """The verdict's reasons that its sentence does not tell already."""
        return [why for why in self.verdict.reasons if why not in self.verdict.sentence]


def _require_lengths(count: int, series: Sequence[BarSeries]) -> None:
    for one in series:
        if len(one.values) != count:
            raise ValueError(f"{one.name}: {len(one.values)} values for {count} bars")
