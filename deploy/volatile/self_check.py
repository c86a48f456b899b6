"""The whole check, in its order, and what a start makes of it."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.volatile import cluster_checks, host_checks, settings
from deploy.volatile.cluster_checks import Picture
from deploy.volatile.findings import Finding
from kvstore.errors import ConfigError


def examine(picture: Picture) -> tuple[Finding, ...]:
    """Everything that is looked at, refused or not."""
    profile, host = picture.config.profile, picture.host
    return (
        *settings.check(host.environment, profile),
        *(check(host, profile) for check in host_checks.CHECKS),
        *(check(picture) for check in cluster_checks.CHECKS),
    )


def require(findings: Sequence[Finding]) -> str:
    """What to say of warnings when a cluster starts, in one line, or "".

    Raises ConfigError when anything is refused: the first of it, and how much more there is.
    """
    refused = [finding for finding in findings if finding.state == "refused"]
    if refused:
        first = refused[0]
        more = f" (and {len(refused) - 1} more: kvferry doctor)" if len(refused) > 1 else ""
        raise ConfigError(f"{first.name}: {first.found}: {first.fix}{more}")
    warnings = sum(finding.state == "warning" for finding in findings)
    return f"{warnings} warning{'s' * (warnings > 1)}: kvferry doctor" if warnings else ""
