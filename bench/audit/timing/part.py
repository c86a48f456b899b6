"""The statistical part: how long it measures, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable

from bench.audit.asking import Asker
from bench.audit.deployment import Deployment
from bench.audit.findings import Finding, Part
from bench.audit.timing import judging, power
from bench.audit.timing.measuring import Measuring, Times
from bench.audit.timing.trials import Who

SHORT_SECONDS = 180.0
FULL_SECONDS = 50 * 60.0
PILOT_SECONDS = 20.0
_LEAST = 20
"""Of each arm of the control: fewer cannot reject clearly."""


async def audited(
    deployment: Deployment,
    asker: Asker,
    say: Callable[[str], None],
    *,
    full: bool,
    seed: int,
) -> Part:
    """Short: as many trials as fit into ``SHORT_SECONDS``. Full: as many as the equivalence test
    needs, as far as a pilot says that they fit in its bound.
    """
    measuring = Measuring(deployment, asker, seed)
    bound = FULL_SECONDS if full else SHORT_SECONDS
    wanted = power.needed(power.POWER) if full else None
    if full:
        pilot = await measuring.blocks(lambda times: times.seconds > PILOT_SECONDS, say)
        each = pilot.seconds / max(1, _least(pilot, "other"))
        assert wanted is not None
        say(f"{wanted} samples of each kind are needed, in {wanted * each / 60:.0f} minutes")
    times = await measuring.blocks(lambda times: enough(times, bound, wanted), say)
    try:
        return judging.judged(times)
    except ValueError:
        row = Finding(
            name="control, one tenant", verdict="invalid", why=f"too few answers: {times.error}"
        )
        return Part(name="statistical", findings=[row])


def enough(times: Times, bound: float, wanted: int | None) -> bool:
    """All samples that are ``wanted`` are there, or the time is over. Where no number is wanted
    the control's are waited for all the same.
    """
    if wanted is not None and _least(times, "other") >= wanted:
        return True
    return times.seconds >= bound and (wanted is not None or _least(times, "same") >= _LEAST)


def _least(times: Times, who: Who) -> int:
    return min(len(times.arm(who, hit=True)), len(times.arm(who, hit=False)))
