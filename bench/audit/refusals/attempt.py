"""Attempts to get in, and what a row of them comes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.audit.findings import Finding, Verdict


class Attempt(NamedTuple):
    """One try; ``told``: how it was answered."""

    name: str
    refused: bool
    told: str = ""


def not_made(name: str, why: str) -> Finding:
    """A row whose attempts could not be made, though they should have been."""
    return row(name, [], control=why)


def row(name: str, attempts: Sequence[Attempt], control: str = "", note: str = "") -> Finding:
    """``control``: why what had to be let in was not; "" where it was."""
    refused = sum(attempt.refused for attempt in attempts)
    let_in = [f"{one.name}: {one.told or 'let in'}" for one in attempts if not one.refused]
    verdict: Verdict = "pass" if attempts else "not tried"
    if control:
        verdict = "invalid"
    if let_in:
        verdict = "fail"
    why = "; ".join(part for part in (*let_in, control, note) if part)
    figures = {"tried": len(attempts), "refused": refused}
    return Finding(name=name, verdict=verdict, why=why, figures=figures)
