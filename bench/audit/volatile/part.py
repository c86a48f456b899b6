"""The part about what is left behind: the canary's way, the control, the search."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from bench.audit import processes
from bench.audit.asking import Asker
from bench.audit.deployment import Deployment
from bench.audit.findings import Finding, Part
from bench.audit.restarting import Restarter
from bench.audit.volatile import canary
from bench.audit.volatile.canary import Form
from bench.audit.volatile.kv import TierMemory
from bench.audit.volatile.places import Walk, mounts
from bench.audit.volatile.planting import planted
from bench.audit.volatile.searching import Searcher
from bench.audit.volatile.sending import Sending, Sent
from bench.audit.volatile.sweep import Sweep, writable
from bench.client import Client

MOST_BYTES = 16 << 30
SHORT_SECONDS = 180.0
FULL_SECONDS = 900.0

_SETTLE_SECONDS = 2.0
_MID_ANSWER_SECONDS = 2.0
_MOUNTS = Path("/proc/mounts")
_ALSO = ("/tmp", "/var/tmp", "/var/log")  # noqa: S108 - searched, not written for others
_BLIND = (
    "Not searched: disks of other hosts; what a container's runtime keeps of its output; files "
    "that were compressed or encrypted (journald compresses long lines); deleted files that "
    "nobody has open; swap; files whose times were set back."
)


async def audited(
    deployment: Deployment,
    client: Client,
    asker: Asker,
    say: Callable[[str], None],
    *,
    full: bool,
    restarter: Restarter | None,
) -> Part:
    """Sends the canary, then searches. ``restarter``: engines crash in the middle of one."""
    marker, began = canary.new_marker(), time.time()
    tier = await asyncio.to_thread(lambda: TierMemory(processes.mapped(processes.of(deployment))))
    sending = Sending(client, asker, deployment.owner, marker)
    sent = await sending.all()
    await asyncio.sleep(_SETTLE_SECONDS)
    runs = await asyncio.to_thread(tier.changed_runs)
    first = [_sending_row(sent), _forms_row(sent, runs, tier)]
    if restarter is not None:
        first.append(await _crash(sending, restarter))
    wanted = [*canary.text_forms(marker), *canary.kv_forms(runs)]
    if sent.tokens:
        wanted += canary.token_forms(sent.tokens)
    say(f"canary sent by {len(sent.statuses)} paths; searching")
    until = time.monotonic() + (FULL_SECONDS if full else SHORT_SECONDS)
    control = canary.control_forms()
    searcher = Searcher(wanted, control, MOST_BYTES, until)
    try:
        sweep = await asyncio.to_thread(_swept, deployment, searcher, wanted, control, began)
    finally:
        searcher.stop()
    return _part(first, sweep)


def _swept(
    deployment: Deployment,
    searcher: Searcher,
    wanted: Sequence[Form],
    control: Sequence[Form],
    began: float,
) -> Sweep:
    known, running = mounts(_MOUNTS.read_text(encoding="utf-8")), processes.of(deployment)
    folders = [*writable(known), processes.SHARED_MEMORY, *_ALSO, deployment.config.run_dir]
    live = processes.mapped(running)
    with planted([folder for folder in folders if Path(folder).is_dir()], control) as files:
        sweep = Sweep(
            searcher=searcher,
            mounts=known,
            walk=Walk([mount.path for mount in known], began),
            live=frozenset(live),
            others=frozenset(processes.mapped(psutil.process_iter()) - live),
            planted=files,
            shared=processes.SHARED_MEMORY,
            control=control,
            wanted=wanted,
        )
        sweep.run(running)
    return sweep


def _part(first: Sequence[Finding], sweep: Sweep) -> Part:
    findings = [*first, *sweep.findings]
    if not sweep.planted:
        why = "nothing could be planted, so nothing shows that the search finds anything"
        findings.append(Finding(name="control", verdict="invalid", why=why))
    return Part(
        name="volatile",
        findings=findings,
        metrics={
            "canary_found": float(sweep.found),
            "control_found": float(sweep.controls_found),
            "control_planted": float(len(sweep.planted)),
        },
        notes=[_BLIND, f"Of {sweep.walk.looked_at:,} files those were read that had changed."],
    )


async def _crash(sending: Sending, restarter: Restarter) -> Finding:
    """A canary is in the engines when they end as after a failed assertion."""
    answering = asyncio.create_task(sending.left(_MID_ANSWER_SECONDS))
    await asyncio.sleep(_MID_ANSWER_SECONDS / 2)
    seconds = await restarter.restart(signal.SIGABRT)
    await answering
    why = f"all engines were aborted while they answered one; back after {seconds:.0f} s"
    return Finding(name="canary in a crash", verdict="pass", why=why)


def _sending_row(sent: Sent) -> Finding:
    paths = ", ".join(f"{name} {status}" for name, status in sent.statuses.items())
    return Finding(
        name="canary sent",
        verdict="invalid" if sent.wrong else "pass",
        why="; ".join([*sent.wrong, paths]),
    )


def _forms_row(sent: Sent, runs: Sequence[bytes], tier: TierMemory) -> Finding:
    """Whether all three kinds of it are known: text, tokens, KV."""
    missing = []
    if not sent.tokens:
        missing.append("its tokens are not known: the answer did not tell them")
    if not runs:
        where = "the DRAM tier's memory did not change" if tier.there else "there is no DRAM tier"
        missing.append(f"bytes of its KV are not known: {where}")
    told = f"{canary.TOKENS} token ids and {len(runs)} runs of {canary.KV_BYTES} bytes of KV"
    return Finding(
        name="canary's forms",
        verdict="inconclusive" if missing else "pass",
        why="; ".join(missing) or f"its text, {told}",
    )
