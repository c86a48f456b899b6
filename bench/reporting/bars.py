"""Bars: grouped, stacked, and ratios with their intervals. All lie, so that names have room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from bench.reporting.axes import SMALLEST, Axis, linear_axis, log_axis
from bench.reporting.document import Bars, Interval, Ratio, StackedBars
from bench.reporting.drawing import (
    FONT,
    WIDTH,
    Canvas,
    colour,
    fitted,
    legend,
    no_data,
    width_of,
)
from bench.reporting.wording import tell

_BAR = 15.0
_GAP = 10.0
_NAMES = 150.0
_CAP = 1e290  # so that parts can be added up
_OUTCOMES = {"better": "c3", "worse": "c2", "no difference found": "neutral"}


def bars_svg(plot: Bars) -> str:
    """Groups below each other, the value written at the end of every bar."""
    label = f"{plot.title}: {plot.x_label} of {', '.join(plot.groups)}"
    values = _kept([value for series in plot.series for value in series.values])
    if not values:
        return no_data(label)
    canvas = Canvas()
    y = legend(canvas, [series.name for series in plot.series], lines=False) + 4
    left = _name_room(plot.groups)
    right = WIDTH - 8 - max(width_of(tell(float(value))) for value in values)
    axis = linear_axis(values, from_zero=True, snug=True)
    for group, name in enumerate(plot.groups):
        middle = y + len(plot.series) * _BAR / 2 + 4
        canvas.text(left - 8, middle, fitted(name, left - 8), "", "end")
        for index, series in enumerate(plot.series):
            value = series.values[group]
            if value is not None and math.isfinite(value):
                _draw_bar(canvas, (left, right, y), axis, value, colour(index))
            y += _BAR
        y += _GAP
    return _close(canvas, y - _GAP, plot.x_label, label)


def _draw_bar(
    canvas: Canvas, place: tuple[float, float, float], axis: Axis, value: float, kind: str
) -> None:
    left, right, y = place
    zero = left + axis.share(0.0) * (right - left)
    end = left + axis.share(value) * (right - left)
    start, width = min(zero, end), max(abs(end - zero), 1.0)
    canvas.box((start, y + 1), (width, _BAR - 3), f"fill {kind}")
    canvas.text(start + width + 5, y + _BAR - 4, tell(float(value)), "value")


def stacked_bars_svg(plot: StackedBars) -> str:
    """One bar for each name, its parts in order, with their values where they fit."""
    label = f"{plot.title}: {', '.join(part.name for part in plot.parts)}, {plot.x_label}"
    totals = [
        sum(min(value, _CAP) for value in _kept([part.values[i] for part in plot.parts]))
        for i in range(len(plot.bars))
    ]
    if not any(total > SMALLEST for total in totals):
        return no_data(label)
    canvas = Canvas()
    y = legend(canvas, [part.name for part in plot.parts], lines=False) + 4
    left = _name_room(plot.bars)
    right = WIDTH - 8 - max(width_of(tell(float(total))) for total in totals)
    scale = (right - left) / max(totals)
    for bar, name in enumerate(plot.bars):
        canvas.text(left - 8, y + 17, fitted(name, left - 8), "", "end")
        x = left
        for index, part in enumerate(plot.parts):
            value = part.values[bar]
            if value is not None and math.isfinite(value) and value > 0:
                x += _draw_part(canvas, (x, y), value, min(value, _CAP) * scale, (index, part.name))
        canvas.text(x + 5, y + 17, tell(float(totals[bar])), "value")
        y += 26 + _GAP
    return _close(canvas, y - _GAP, plot.x_label, label)


def _draw_part(
    canvas: Canvas, at: tuple[float, float], value: float, width: float, part: tuple[int, str]
) -> float:
    index, name = part
    text = tell(float(value))
    canvas.box(at, (max(width - 1, 0.4), 25), f"fill {colour(index)}", f"{name}: {text}")
    if width_of(text, FONT - 1) + 6 < width:
        canvas.text(at[0] + width / 2, at[1] + 17, text, "on", "middle")
    return width


def interval_svg(plot: Interval) -> str:
    """Each ratio as a dot in its interval, against a line at 1.0, and in words beside it."""
    ratios = [one for one in plot.ratios if _drawable(one)]
    label = f"{plot.title}: {plot.x_label}; " + "; ".join(
        f"{one.name} {_told(one)}, {one.outcome}" for one in ratios
    )
    if not ratios:
        return no_data(label)
    canvas = Canvas()
    axis = log_axis([1.0, *(bound for one in ratios for bound in (one.low, one.high, one.ratio))])
    left, right, y = 8.0, WIDTH - 8, 4.0
    bottom = y + 46 * len(ratios)
    ticks = [
        (left + axis.share(at) * (right - left), text, "axis" if at == 1.0 else "grid")
        for at, text in _thinned(axis, left, right)
    ]
    for x, text, _ in ticks:
        canvas.text(x, bottom + 15, text, "tick", "middle")
    for one in ratios:
        for x, _, kind in ticks:  # not across the words
            canvas.line((x, y + 20), (x, y + 40), kind)
        _draw_ratio(canvas, (left, right, y), axis, one)
        y += 46
    return _close(canvas, bottom + 14, plot.x_label, label)


def _draw_ratio(canvas: Canvas, place: tuple[float, float, float], axis: Axis, one: Ratio) -> None:
    left, right, y = place
    low, at, high = (
        left + axis.share(value) * (right - left) for value in (one.low, one.ratio, one.high)
    )
    kind = _OUTCOMES[one.outcome]
    told = f"{_told(one)}, {one.outcome}"
    canvas.text(2, y + 14, fitted(one.name, WIDTH - width_of(told) - 10), "halo strong")
    canvas.text(WIDTH, y + 14, told, "halo value", "end")
    canvas.line((low, y + 29), (high, y + 29), f"whisker {kind}")
    for end in (low, high):
        canvas.line((end, y + 24), (end, y + 34), f"whisker {kind}")
    canvas.dot(at, y + 29, f"fill {kind}", 5)


def _thinned(axis: Axis, left: float, right: float) -> list[tuple[float, str]]:
    """The ticks whose labels neither meet nor leave the drawing; that at 1 always stays."""
    ticks = [tick for tick in axis.ticks if tick[0] != 1.0]
    kept = [(1.0, "1.0")]
    for tick in ticks:
        x = left + axis.share(tick[0]) * (right - left)
        near = (abs(x - (left + axis.share(at) * (right - left))) for at, _ in kept)
        half = width_of(tick[1]) / 2
        if min(near) > 2 * half + 8 and half <= x <= WIDTH - half:
            kept.append(tick)
    return sorted(kept)


def _drawable(one: Ratio) -> bool:
    values = (one.low, one.ratio, one.high)
    return all(math.isfinite(value) and value > 0 for value in values) and all(
        earlier <= later for earlier, later in pairwise(values)
    )


def _told(one: Ratio) -> str:
    if one.high >= 1e4 or one.low < 1e-3:
        return f"{one.ratio:.3g} [{one.low:.3g}, {one.high:.3g}]"
    return f"{one.ratio:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _kept(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _name_room(names: Sequence[str]) -> float:
    return min(_NAMES, max(width_of(name) for name in names) + 8)


def _close(canvas: Canvas, y: float, x_label: str, label: str) -> str:
    canvas.text(WIDTH / 2, y + FONT + 4, fitted(x_label, WIDTH), "label", "middle")
    return canvas.finished(y + FONT + 12, label)
