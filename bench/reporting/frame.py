"""The frame that curves and the heat strip are drawn in: two axes, their labels, a limit line."""

from __future__ import annotations

from dataclasses import dataclass

from bench.reporting.axes import Axis
from bench.reporting.document import Limit
from bench.reporting.drawing import FONT, WIDTH, Canvas, fitted, width_of

HEIGHT = 168.0
"""Units between the ends of the y axis."""
_BELOW = 36.0
_LABEL = 22.0


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the plot's own area lies, units, and the axes along it."""

    left: float
    top: float
    right: float
    x: Axis
    y: Axis

    @property
    def bottom(self) -> float:
        """The y coordinate of the x axis."""
        return self.top + HEIGHT

    @property
    def height(self) -> float:
        """Units that the whole drawing takes, labels below included."""
        return self.bottom + _BELOW

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The coordinates of a point."""
        return self.across(x), self.down(y)

    def across(self, x: float) -> float:
        """The coordinate of a value of x."""
        return self.left + self.x.share(x) * (self.right - self.left)

    def down(self, y: float) -> float:
        """The coordinate of a value of y."""
        return self.bottom - self.y.share(y) * HEIGHT


def framed(x: Axis, y: Axis, above: float, beside: float = 0.0) -> Frame:
    """A frame below ``above`` units of legend, with ``beside`` units free on its right."""
    widest = max((width_of(label, FONT - 1) for _, label in y.ticks), default=0.0)
    return Frame(widest + 8, above + _LABEL + 4, WIDTH - max(beside, 10.0), x, y)


def draw_frame(canvas: Canvas, frame: Frame, x_label: str, y_label: str) -> None:
    """Grid, ticks and labels. The y label lies above its axis, where it can be read."""
    for at, label in frame.y.ticks:
        y = frame.down(at)
        canvas.line((frame.left, y), (frame.right, y), "grid")
        canvas.text(frame.left - 6, y + 4, label, "tick", "end")
    canvas.line((frame.left, frame.bottom), (frame.right, frame.bottom), "axis")
    _draw_x_ticks(canvas, frame)
    canvas.text(2, frame.top - 11, fitted(y_label, frame.right - 2), "label")
    middle = (frame.left + frame.right) / 2
    room = 2 * min(middle, WIDTH - middle)
    canvas.text(middle, frame.bottom + 31, fitted(x_label, room), "label", "middle")


def _draw_x_ticks(canvas: Canvas, frame: Frame) -> None:
    taken = -1.0
    for at, label in frame.x.ticks:
        x = frame.across(at)
        canvas.line((x, frame.bottom), (x, frame.bottom + 4), "axis")
        half = width_of(label, FONT - 1) / 2
        middle = min(max(x, half), WIDTH - half)
        if middle - half < taken + 4:
            continue
        canvas.text(middle, frame.bottom + 16, label, "tick", "middle")
        taken = middle + half


def draw_limit_of_y(canvas: Canvas, frame: Frame, limit: Limit) -> None:
    """A dashed line from left to right with its label on it."""
    y = frame.down(limit.value)
    canvas.line((frame.left, y), (frame.right, y), "limit")
    base = y - 5 if y - 5 - FONT > frame.top else y + FONT + 2
    text = fitted(limit.label, frame.right - frame.left)
    canvas.text(frame.left + 4, base, text, "limit-label halo")


def draw_limit_of_x(canvas: Canvas, frame: Frame, limit: Limit) -> None:
    """A dashed line from top to bottom, its label to the right, where a curve is at the top, unless
    there is more room on the left and the label needs it."""
    x = frame.across(limit.value)
    canvas.line((x, frame.top), (x, frame.bottom), "limit")
    beyond = frame.right - x - 5
    to_left = x - frame.left > beyond and width_of(limit.label) > beyond
    room = x - frame.left - 5 if to_left else beyond
    canvas.text(
        x - 5 if to_left else x + 5,
        frame.bottom - 8,
        fitted(limit.label, room),
        "limit-label halo",
        "end" if to_left else "start",
    )
