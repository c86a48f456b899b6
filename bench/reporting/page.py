"""A report as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import assert_never

from bench.reporting.document import (
    TOO_FEW,
    Bars,
    Block,
    Cell,
    Document,
    Ecdf,
    HeatStrip,
    Interval,
    Lines,
    Paragraph,
    Plot,
    Section,
    StackedBars,
    Table,
)
from bench.reporting.drawing import quoted
from bench.reporting.style import PAGE_STYLE
from bench.reporting.svg import plot_svg
from bench.reporting.wording import tell

# The page could not reach the network even if a name in it slipped through unescaped.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(document: Document) -> str:
    """The whole page; all text in it is escaped."""
    sections = "\n".join(_section(section) for section in document.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{quoted(document.title)}</title>
<style>{PAGE_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{quoted(document.title)}</h1>
<div class="subtitle">{quoted(document.subtitle)}</div>
{_verdict(document)}
</header>
{sections}
</main>
</body>
</html>
"""


def _verdict(document: Document) -> str:
    verdict = document.verdict
    reasons = "".join(f"<li>{quoted(reason)}</li>" for reason in document.reasons)
    return (
        f'<div class="verdict{"" if verdict.valid else " bad"}"><p>{quoted(verdict.sentence)}</p>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div>"
    )


def _section(section: Section) -> str:
    parts: list[str] = []
    for prose, blocks in groupby(section.blocks, key=_is_prose):
        drawn = "\n".join(_block(block) for block in blocks)
        parts.append(drawn if prose else f'<div class="beside">{drawn}</div>')
    return f"<section>\n<h2>{quoted(section.heading)}</h2>\n{''.join(parts)}\n</section>"


def _is_prose(block: Block) -> bool:
    return isinstance(block, Paragraph)


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            shown = ' class="warning"' if block.tone == "warning" else ""
            return f"<p{shown}>{quoted(block.text)}</p>"
        case Table():
            return _table(block)
        case Lines() | Ecdf() | Bars() | StackedBars() | HeatStrip() | Interval():
            return _figure(block)
        case _:
            assert_never(block)


def _figure(plot: Plot) -> str:
    return (
        f"<figure><figcaption>{quoted(plot.title)}</figcaption>{plot_svg(plot)}"
        f"{_note(plot.note)}</figure>"
    )


def _table(table: Table) -> str:
    caption = f"<caption>{quoted(table.caption)}</caption>" if table.caption else ""
    numeric = [table.numeric(column) for column in range(len(table.columns))]
    heads = "".join(
        f'<th scope="col"{_class("number" if right else "")}>{quoted(name)}</th>'
        for name, right in zip(table.columns, numeric, strict=True)
    )
    rows = "\n".join(_row(row, numeric) for row in table.rows)
    # A wide table scrolls in its own box; it takes the focus so that keys can scroll it.
    return (
        f'<div class="table"><div class="scroll" tabindex="0"><table>{caption}'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        f"{_note(table.note)}</div>"
    )


def _row(row: Sequence[Cell], numeric: Sequence[bool]) -> str:
    return (
        "<tr>"
        + "".join(
            f'<th scope="row">{quoted(tell(cell))}</th>'
            if column == 0 and not right
            else f"<td{_class(_looks(cell, right))}>{quoted(tell(cell))}</td>"
            for column, (cell, right) in enumerate(zip(row, numeric, strict=True))
        )
        + "</tr>"
    )


def _looks(cell: Cell, right: bool) -> str:
    if not right:
        return "text"
    return "number absent" if cell in (None, TOO_FEW) else "number"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _note(note: str) -> str:
    return f'<p class="note">{quoted(note)}</p>' if note else ""
