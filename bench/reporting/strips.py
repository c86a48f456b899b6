"""The heat strip: columns of time, rows of latency, stronger in colour where more fell."""

from __future__ import annotations

from bench.reporting.axes import linear_axis, log_axis
from bench.reporting.document import HeatStrip
from bench.reporting.drawing import Canvas, no_data
from bench.reporting.frame import Frame, draw_frame, framed
from bench.reporting.wording import tell

_FAINTEST = 0.12


def heat_strip_svg(plot: HeatStrip) -> str:
    """The bins that hold anything, each shaded by the root of its count."""
    label = (
        f"{plot.title}: {plot.y_label} over {plot.x_label}, stronger in colour where there are more"
    )
    most = max((count for column in plot.counts for count in column), default=0)
    if most <= 0:
        return no_data(label)
    x_axis = linear_axis(plot.x_edges, snug=True)
    y_axis = log_axis(plot.y_edges) if plot.log_y else linear_axis(plot.y_edges)
    canvas = Canvas()
    frame = framed(x_axis, y_axis, 0.0)
    draw_frame(canvas, frame, plot.x_label, plot.y_label)
    for column, counts in enumerate(plot.counts):
        for row, count in enumerate(counts):
            if count > 0:
                _draw_bin(canvas, frame, plot, (column, row), (count / most) ** 0.5)
    return canvas.finished(frame.height, label)


def _draw_bin(
    canvas: Canvas, frame: Frame, plot: HeatStrip, place: tuple[int, int], share: float
) -> None:
    column, row = place
    left, right = plot.x_edges[column], plot.x_edges[column + 1]
    low, high = plot.y_edges[row], plot.y_edges[row + 1]
    x, y = frame.at(left, high)
    width = max(frame.across(right) - x - 0.6, 0.6)
    height = max(frame.down(low) - y - 0.6, 0.6)
    tip = (
        f"{tell(float(left))} to {tell(float(right))}, {tell(float(low))} to {tell(float(high))}: "
        f"{plot.counts[column][row]}"
    )
    opacity = _FAINTEST + (1 - _FAINTEST) * share
    canvas.box((x, y), (width, height), "fill c1", tip, opacity)
