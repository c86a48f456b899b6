"""An audit as a result and as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bench.audit.findings import Finding, Part, worst
from bench.reporting.document import (
    Block,
    Cell,
    Document,
    Ecdf,
    Paragraph,
    Samples,
    Section,
    Table,
)
from bench.result import Verdict

_TITLES = {
    "deterministic": "Cached tokens",
    "statistical": "Time to the first token",
    "volatile": "What is left behind",
    "transport": "Who is let in",
}
_SENTENCES = {
    "fail": "FAILED: tenants are not apart, or something of theirs is left.",
    "invalid": "INVALID: a control did not find what it must, so nothing is proven.",
    "inconclusive": "Nothing was found; not all of it could be judged.",
    "pass": "Nothing of a tenant's was found by anybody else, nor left behind.",
    "not tried": "Nothing was tried.",
}


def verdict(parts: Sequence[Part], *, full: bool) -> Verdict:
    """Valid where no row fails or is invalid, and in a ``full`` audit none inconclusive."""
    found = worst(part.verdict for part in parts)
    good = found == "pass" or (found == "inconclusive" and not full)
    reasons = [
        f"{part.name}, {row.name}: {row.verdict}"
        for part in parts
        for row in part.findings
        if row.verdict != "pass"
    ]
    return Verdict(valid=good, sentence=_SENTENCES[found], reasons=tuple(reasons))


def metrics(parts: Sequence[Part]) -> dict[str, float]:
    """All parts' together."""
    return {name: value for part in parts for name, value in part.metrics.items()}


def detail(parts: Sequence[Part]) -> dict[str, object]:
    """Every row of every part, and each part's own verdict."""
    return {part.name: {"verdict": part.verdict, **msgspec.to_builtins(part)} for part in parts}


def document(parts: Sequence[Part], subtitle: str, judged: Verdict) -> Document:
    """The report: a section for each part."""
    sections = [Section(_title(part), _blocks(part)) for part in parts]
    return Document("kvferry audit", subtitle, judged, sections)


def _title(part: Part) -> str:
    untried = sum(row.verdict == "not tried" for row in part.findings)
    but = f", {untried} of {len(part.findings)} rows not tried" if untried else ""
    return f"{_TITLES[part.name]}: {part.verdict}{but}"


def _blocks(part: Part) -> list[Block]:
    """The rows' figures, what there is to say of them, and what the part is blind to."""
    told = [Paragraph(f"{row.name}: {row.why}.") for row in part.findings if row.why]
    plots = [_times(part.detail)] if part.name == "statistical" and part.detail else []
    return [_table(part.findings), *told, *plots, *(Paragraph(note) for note in part.notes)]


def _times(arms: Mapping[str, Sequence[float]]) -> Ecdf:
    """Of each arm: curves of two arms that lie on each other tell nobody anything."""
    series = [Samples(name.replace("_", " tenant, "), values) for name, values in arms.items()]
    return Ecdf("Time to the first token", series, "ms")


def _table(findings: Sequence[Finding]) -> Table:
    columns = list(dict.fromkeys(name for one in findings for name in one.figures))
    rows: list[list[Cell]] = [
        [one.name, one.verdict, *(one.figures.get(column) for column in columns)]
        for one in findings
    ]
    return Table(["", "verdict", *(name.replace("_", " ") for name in columns)], rows)
