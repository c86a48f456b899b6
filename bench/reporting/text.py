"""A report as text for a terminal: the verdict and the tables. Plots are left to the page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bench.reporting.document import Document, Paragraph, Section, Table
from bench.reporting.wording import cells, clean, tell

_WRAP = 100
_BETWEEN = "  "


def render_text(document: Document) -> str:
    """Title, verdict, and the sections with a table or a paragraph; ends with a new line."""
    head = [clean(document.title)]
    if document.subtitle:
        head.append(clean(document.subtitle))
    head += ["", *_wrapped(document.verdict.sentence)]
    for reason in document.reasons:
        head += _wrapped(f"- {reason}", "  ")
    sections = [_section(section) for section in document.sections]
    return "\n\n".join(["\n".join(head), *(section for section in sections if section)]) + "\n"


def render_table(table: Table) -> str:
    """The table alone, aligned, without a new line at its end."""
    numeric = [table.numeric(column) for column in range(len(table.columns))]
    lines = [
        [clean(name) for name in table.columns],
        *([clean(tell(cell)) for cell in row] for row in table.rows),
    ]
    widths = [max(cells(line[column]) for line in lines) for column in range(len(table.columns))]
    head, *rows = (_aligned(line, widths, numeric) for line in lines)
    rule = _BETWEEN.join("─" * width for width in widths)
    return "\n".join([*([clean(table.caption)] if table.caption else []), head, rule, *rows])


def _section(section: Section) -> str:
    parts: list[str] = []
    for block in () if section.page_only else section.blocks:
        if isinstance(block, Table):
            parts.append(render_table(block))
            if block.note:
                parts[-1] += "\n" + "\n".join(_wrapped(block.note))
        elif isinstance(block, Paragraph):
            parts.append("\n".join(_wrapped(block.text)))
    return "\n".join([clean(section.heading).upper(), "\n\n".join(parts)]) if parts else ""


def _aligned(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (
        " " * (width - cells(text)) + text if right else text + " " * (width - cells(text))
        for text, width, right in zip(line, widths, numeric, strict=True)
    )
    return _BETWEEN.join(padded).rstrip()


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(clean(text), _WRAP, initial_indent=indent, subsequent_indent=indent) or [
        ""
    ]
