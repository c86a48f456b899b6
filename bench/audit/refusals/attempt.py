"""Attempts to get in, and what a row of them comes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.audit.findings import Finding, Verdict


class Attempt(NamedTuple):
    """One try; ``told``: how it was answered. ``answered`` False: it proves nothing."""

    name: str
    refused: bool
    told: str = ""
    answered: bool = True


def not_made(name: str, why: str) -> Finding:
    """A row whose attempts could not be made, though they should have been."""
    return row(name, [], control=why)


def not_tried(name: str, why: str) -> Finding:
    """A row for which there is nothing to attempt."""
    return row(name, [], note=why)


def row(name: str, attempts: Sequence[Attempt], control: str = "", note: str = "") -> Finding:
    """``control``: why what had to be let in was not; "" where it was."""
    refused = sum(attempt.refused for attempt in attempts)
    doubtful = [one for one in attempts if not one.refused]
    let_in = [f"{one.name}: {one.told or 'let in'}" for one in doubtful if one.answered]
    unheard = [f"{one.name}: {one.told}" for one in doubtful if not one.answered]
    verdict: Verdict = "pass" if attempts else "not tried"
    if control or unheard:
        verdict = "invalid"
    if let_in:
        verdict = "fail"
    why = "; ".join(part for part in (*let_in, *unheard[:1], control, note) if part)
    figures = {"tried": len(attempts), "refused": refused}
    return Finding(name=name, verdict=verdict, why=why, figures=figures)
