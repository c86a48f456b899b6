"""A plot as one SVG element, for a page or for a file of its own. The same plot, the same bytes."""

from __future__ import annotations

from typing import assert_never

from bench.reporting.bars import bars_svg, interval_svg, stacked_bars_svg
from bench.reporting.curves import ecdf_svg, lines_svg
from bench.reporting.document import Bars, Ecdf, HeatStrip, Interval, Lines, Plot, StackedBars
from bench.reporting.drawing import WIDTH, fitted, quoted
from bench.reporting.strips import heat_strip_svg
from bench.reporting.style import PLOT_STYLE

_TITLE = 28


def plot_svg(plot: Plot) -> str:
    """The drawing without its title, to stand in a page that has ``style.PLOT_STYLE``."""
    match plot:
        case Lines():
            return lines_svg(plot)
        case Ecdf():
            return ecdf_svg(plot)
        case Bars():
            return bars_svg(plot)
        case StackedBars():
            return stacked_bars_svg(plot)
        case HeatStrip():
            return heat_strip_svg(plot)
        case Interval():
            return interval_svg(plot)
        case _:
            assert_never(plot)


def standalone_svg(plot: Plot) -> str:
    """The drawing with its title, colours for light and dark, and ground: a file to link to."""
    inner = plot_svg(plot)
    height = float(inner.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()[1])
    box = f"-12 0 {WIDTH + 24:g} {height + _TITLE + 12:g}"
    title = quoted(fitted(plot.title, WIDTH, 15))
    placed = inner.replace("<svg ", f'<svg y="{_TITLE}" width="{WIDTH:g}" height="{height:g}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" class="sheet" role="img" '
        f'aria-label="{quoted(plot.title)}"><style>{PLOT_STYLE}</style>'
        f'<rect class="ground" x="-12" width="100%" height="100%"/>'
        f'<text class="heading" x="0" y="20">{title}</text>{placed}</svg>\n'
    )
