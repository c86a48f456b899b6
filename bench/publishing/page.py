"""Where README's sections and the results they are written from lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.errors import BenchError
from bench.reporting.document import Plot
from bench.reporting.files import write_whole
from bench.reporting.svg import standalone_svg

RESULTS = Path("bench", "results")


class CannotPublish(BenchError):
    """The folder is no clone whose README has the marks, or a file is no result to publish."""


def read(clone: Path) -> str:
    """README. Raises CannotPublish."""
    readme = clone / "README.md"
    if not (clone / RESULTS).is_dir():
        raise CannotPublish(f"{clone} is no clone of kvferry: it has no {RESULTS}")
    try:
        return readme.read_text(encoding="utf-8")
    except OSError as error:
        raise CannotPublish(f"{readme}: {error.strerror}") from None


def write(clone: Path, page: str, plots: Mapping[str, Plot]) -> None:
    """README, and its ``plots`` by file name. Raises OSError."""
    for name, plot in plots.items():
        write_whole(clone / RESULTS / name, standalone_svg(plot).encode())
    write_whole(clone / "README.md", page.encode())


def replaced(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` between the marks of that name. Raises CannotPublish without them."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = page.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise CannotPublish(f"README.md has no section between {opening} and {closing}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def images(plots: Mapping[str, Plot]) -> list[str]:
    """What shows them, Markdown."""
    return [f"![{plot.title}]({RESULTS / name})" for name, plot in plots.items()]
