"""The strokes that all plots share: a canvas of SVG elements, text that fits, and the legend.

Colours and strokes are classes; :mod:`bench.reporting.style` gives them their looks, for light and
dark. Everything is placed in a box :data:`WIDTH` units wide, about as wide as a phone, so that text
of :data:`FONT` units stays readable there and plots stand side by side on anything wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal

from bench.reporting.wording import cells, clean

WIDTH = 375.0
FONT = 12.0
LEGEND_ROW = 17.0
COLOURS = 6
MARK = 16.0

Anchor = Literal["start", "middle", "end"]

# Widths in units of the font size, as in the widest of the usual sans-serif faces.
_NARROW = frozenset("iljtfI.,:;|!' ()[]")
_WIDE = frozenset("mwMW@%—…")


class Canvas:
    """Collects elements. Coordinates are rounded to a tenth, so the same plot gives the same
    bytes."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: Anchor = "start") -> None:
        """``y`` is the base line."""
        shown = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text x="{number(x)}" y="{number(y)}"{_kind(kind)}{shown}>{quoted(text)}</text>'
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
        """A straight stroke."""
        (x1, y1), (x2, y2) = start, end
        self._parts.append(
            f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
            f"{_kind(kind)}/>"
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A stroke from point to point."""
        steps = "L".join(f"{number(x)},{number(y)}" for x, y in points)
        self._parts.append(f'<path d="M{steps}"{_kind(kind)}/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 3.0) -> None:
        """A filled circle."""
        self._parts.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"{_kind(kind)}/>'
        )

    def box(
        self, corner: tuple[float, float], size: tuple[float, float], kind: str,
        tip: str = "", opacity: float = 1.0,
    ) -> None:  # fmt: skip
        """A filled rectangle; ``tip`` shows under a pointer."""
        faint = "" if opacity >= 1 else f' fill-opacity="{opacity:.2f}"'
        inside = f"<title>{quoted(tip)}</title>" if tip else ""
        self._parts.append(
            f'<rect x="{number(corner[0])}" y="{number(corner[1])}" '
            f'width="{number(size[0])}" height="{number(size[1])}"{_kind(kind)}{faint}>'
            f"{inside}</rect>"
        )

    def finished(self, height: float, label: str) -> str:
        """The whole as one SVG element."""
        return (
            f'<svg class="plot" viewBox="0 0 {number(WIDTH)} {number(height)}" role="img" '
            f'aria-label="{quoted(label)}">{"".join(self._parts)}</svg>'
        )


def number(value: float) -> str:
    """A coordinate, without a needless decimal or a minus before zero."""
    return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:.0f}"


def quoted(text: str) -> str:
    """Text made safe between tags and within a quoted attribute."""
    return escape(clean(text))


def colour(index: int) -> str:
    """The class that gives a series its colour."""
    return f"c{index % COLOURS + 1}"


def dashes(index: int) -> str:
    """The class that tells lines apart without colour."""
    return f"d{(index + index // COLOURS) % 4}"


def width_of(text: str, font: float = FONT) -> float:
    """An estimate of the width, units, that errs upwards."""
    return font * sum(_share(character) for character in text)


def fitted(text: str, width: float, font: float = FONT) -> str:
    """The text, cut with an ellipsis where it would be wider than ``width`` units."""
    text = clean(text[: int(width)])  # no character is narrower than a unit
    if width_of(text, font) <= width:
        return text
    while text and width_of(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _share(character: str) -> float:
    if character in _NARROW:
        return 0.4
    if character in _WIDE:
        return 1.0
    if ord(character) > 0x2E7F or cells(character) == 2:
        return 1.4
    if ord(character) > 0x24F:
        return 1.0
    return 0.76 if character.isupper() else 0.64


def legend(canvas: Canvas, names: Sequence[str], *, lines: bool) -> float:
    """Draws names with their marks from the top, in as many rows as they need.

    Returns the height it took, units; a single name needs no legend.
    """
    if len(names) < 2:
        return 0.0
    x, y = 0.0, LEGEND_ROW
    for index, name in enumerate(names):
        shown = fitted(name, WIDTH - MARK - 24)
        needed = MARK + 6 + width_of(shown)
        if x > 0 and x + needed > WIDTH:
            x, y = 0.0, y + LEGEND_ROW
        if lines:
            style = f"line {colour(index)} {dashes(index)}"
            canvas.line((x, y - 9), (x + MARK, y - 9), style)
        else:
            canvas.box((x, y - 14), (10, 10), f"fill {colour(index)}")
        canvas.text(x + (MARK if lines else 10) + 5, y - 5, shown)
        x += needed + 10
    return y + 3


def no_data(label: str) -> str:
    """What is drawn where there is nothing to draw."""
    canvas = Canvas()
    canvas.box((0, 0), (WIDTH, 72), "empty")
    canvas.text(WIDTH / 2, 40, "no data", "faint", "middle")
    return canvas.finished(72, f"{label}: no data")


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
