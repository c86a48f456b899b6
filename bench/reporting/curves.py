"""Curves: lines over a common x, and cumulative distributions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.reporting.axes import Axis, linear_axis, log_axis
from bench.reporting.document import Ecdf, Lines
from bench.reporting.drawing import WIDTH, Canvas, colour, dashes, fitted, legend, no_data, width_of
from bench.reporting.frame import Frame, draw_frame, draw_limit_of_x, draw_limit_of_y, framed

STEPS = 200
"""Points at most that a cumulative curve is drawn with."""
_DOTTED = 12
_ROOM_BESIDE = 96.0
_LABEL_GAP = 14.0

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Curve:
    name: str
    points: Sequence[Point]


def lines_svg(plot: Lines) -> str:
    """The curves, each named at its end where that fits and in a legend where it does not."""
    curves = [
        _Curve(series.name, _finite(zip(series.x, series.y, strict=True))) for series in plot.series
    ]
    label = _summary(plot.title, plot.y_label, plot.x_label, curves)
    if not any(curve.points for curve in curves):
        return no_data(label)
    canvas = Canvas()
    beside = _room_beside(curves)
    above = 0.0 if beside else legend(canvas, [curve.name for curve in curves], lines=True)
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_axis = log_axis(xs) if plot.log_x else linear_axis(xs, snug=True)
    limit = [plot.limit.value] if plot.limit else []
    whole = all(isinstance(y, int) for y in ys)
    y_axis = linear_axis([*ys, *limit], from_zero=True, whole=whole)
    frame = framed(x_axis, y_axis, above, beside)
    draw_frame(canvas, frame, plot.x_label, plot.y_label)
    for index, curve in enumerate(curves):
        _draw_curve(canvas, frame, index, curve.points)
    if plot.limit:
        draw_limit_of_y(canvas, frame, plot.limit)
    if beside:
        _name_at_ends(canvas, frame, curves)
    return canvas.finished(frame.height, label)


def ecdf_svg(plot: Ecdf) -> str:
    """The share of the samples at most x, as steps."""
    curves = [
        _Curve(series.name, _steps([v for v in series.values if math.isfinite(v)]))
        for series in plot.series
    ]
    label = _summary(plot.title, "share of samples", plot.x_label, curves)
    if not any(curve.points for curve in curves):
        return no_data(label)
    canvas = Canvas()
    above = legend(canvas, [curve.name for curve in curves], lines=True)
    xs = [x for curve in curves for x, _ in curve.points]
    xs += [plot.limit.value] if plot.limit else []
    x_axis = log_axis(xs) if plot.log_x else linear_axis(xs, snug=True, from_zero=True)
    frame = framed(x_axis, _SHARES, above)
    draw_frame(canvas, frame, plot.x_label, "share of samples")
    if plot.limit:
        draw_limit_of_x(canvas, frame, plot.limit)
    for index, curve in enumerate(curves):
        _draw_stairs(canvas, frame, index, curve.points)
    return canvas.finished(frame.height, label)


_SHARES = Axis(0.0, 1.0, tuple((share / 100, f"{share} %") for share in (0, 25, 50, 75, 100)))


def _finite(points: Iterable[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _steps(values: Sequence[float]) -> list[Point]:
    """(value, share of the samples at most that), at :data:`STEPS` ranks at most, ends included."""
    ordered = sorted(values)
    count = len(ordered)
    if count <= STEPS:
        ranks: Sequence[int] = range(count)
    else:
        ranks = [round(i * (count - 1) / (STEPS - 1)) for i in range(STEPS)]
    return [(ordered[rank], (rank + 1) / count) for rank in ranks]


def _draw_curve(canvas: Canvas, frame: Frame, index: int, points: Sequence[Point]) -> None:
    if len(points) > 1:
        places = [frame.at(x, y) for x, y in points]
        canvas.path(places, f"line {colour(index)} {dashes(index)}")
    if len(points) <= _DOTTED:
        for x, y in points:
            canvas.dot(*frame.at(x, y), f"fill {colour(index)}")


def _draw_stairs(canvas: Canvas, frame: Frame, index: int, points: Sequence[Point]) -> None:
    if not points:
        return
    corners = [frame.at(points[0][0], 0.0)]
    for x, share in points:
        place = frame.at(x, share)
        if place[0] != corners[-1][0]:
            corners.append((place[0], corners[-1][1]))
        corners.append(place)
    corners.append((frame.right, corners[-1][1]))
    canvas.path(corners, f"line {colour(index)} {dashes(index)}")


def _room_beside(curves: Sequence[_Curve]) -> float:
    """Units that names at the ends of the curves need; 0 where they go elsewhere."""
    if not 2 <= len(curves) <= 5 or not all(curve.points for curve in curves):
        return 0.0
    widest = max(width_of(curve.name) for curve in curves) + 10
    return widest if widest <= _ROOM_BESIDE else 0.0


def _name_at_ends(canvas: Canvas, frame: Frame, curves: Sequence[_Curve]) -> None:
    wanted = sorted(
        (frame.down(curve.points[-1][1]), index, curve.name) for index, curve in enumerate(curves)
    )
    lowest = frame.bottom - _LABEL_GAP * (len(wanted) - 1)
    y = frame.top - _LABEL_GAP
    for place, (end, index, name) in enumerate(wanted):
        y = min(max(end, y + _LABEL_GAP), lowest + _LABEL_GAP * place)
        text = fitted(name, WIDTH - frame.right - 6)
        canvas.text(frame.right + 6, y + 4, text, f"name {colour(index)}")


def _summary(title: str, y: str, x: str, curves: Sequence[_Curve]) -> str:
    names = ", ".join(curve.name for curve in curves)
    return f"{title}: {y} over {x}; {names}"
