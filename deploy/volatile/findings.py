"""What one check has found, and what follows from it under the cluster's profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Profile = Literal["laptop", "strict"]
State = Literal["ok", "warning", "refused"]
Weight = Literal["leak", "host", "note"]
"""``leak``: could write prompts, tokens or KV to a disk, or send them elsewhere. ``host``: a
matter of the host, or a door that is open on it. ``note``: to be known, and no reason not to start.
"""


@dataclass(frozen=True)
class Finding:
    """One row of the check. ``fix`` is "" where nothing is to be done.

    No text of it holds the value of a setting: that may be a secret.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Finding:
    """All is as it should be."""
    return Finding(name, "ok", found)


def flaw(name: str, profile: Profile, weight: Weight, found: str, fix: str) -> Finding:
    """Something is not: refused or warned of, as ``profile`` takes what has this ``weight``."""
    refused = weight == "leak" or (weight == "host" and profile == "strict")
    return Finding(name, "refused" if refused else "warning", found, fix)
