"""What an audit found: rows, each with a verdict, in sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

Verdict = Literal["pass", "fail", "invalid", "inconclusive", "not tried"]
"""``invalid``: the positive control did not find what it must, so nothing is proven.
``inconclusive``: what was found does not suffice to say. ``not tried``: the row says why."""

_WORST_FIRST: tuple[Verdict, ...] = ("fail", "invalid", "inconclusive", "pass", "not tried")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One row. ``why``: what the verdict rests on, or what was done; ``figures`` by name."""

    name: str
    verdict: Verdict
    why: str = ""
    figures: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of an audit. ``metrics``: plain numbers, each name in one part only."""

    name: str
    findings: Sequence[Finding]
    metrics: Mapping[str, float] = msgspec.field(default_factory=dict)
    notes: Sequence[str] = ()
    detail: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst of its rows'; ``not tried`` where none was."""
        return worst(finding.verdict for finding in self.findings)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several; ``not tried`` of none, and one that was tried comes before it."""
    found = set(verdicts)
    return next((verdict for verdict in _WORST_FIRST if verdict in found), "not tried")
