"""The check as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from deploy.volatile.findings import Finding, Profile


def table(findings: Sequence[Finding], profile: Profile) -> str:
    """One line each, aligned, what to do below; the sum last. Readable without colour."""
    widest = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<7}  {finding.name:<{widest}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<7}  {'':<{widest}}  do: {finding.fix}")
    counts = Counter(finding.state for finding in findings)
    total = ", ".join(f"{counts[state]} {state}" for state in ("ok", "warning", "refused"))
    return "\n".join((*lines, "", f"profile {profile}: {total}"))


def as_json(findings: Sequence[Finding], profile: Profile) -> str:
    """``{"profile", "refused", "warnings", "findings": [{"name", "state", "found", "fix"}]}``."""
    counts = Counter(finding.state for finding in findings)
    told = {
        "profile": profile,
        "refused": counts["refused"],
        "warnings": counts["warning"],
        "findings": findings,
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()
