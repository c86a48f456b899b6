"""Why a request is sent where it is sent: candidates, what they hold, what they would cost. Pure.

For operators: it names workers and tells their load, so no tenant is shown it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvstore.index import Held
from kvstore.messages import Announce
from proxy.jobs import Job
from proxy.planning import Considered
from proxy.prompts import Candidate, Layout
from proxy.steering import DecodeOnly

MOST_CANDIDATES = 16
"""Prefill workers that are told of; of more, the cheapest."""


def explanation(
    job: Job, considered: Considered, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """JSON. Tokens, and seconds.

    ``plan`` is "prefill" (``candidates`` of which the first is meant), "decode-only" or "reject",
    with the reason for the latter two. ``expected``: of prefill, with the wait; ``after`` is from
    its end to the first token.
    """
    told: dict[str, Any] = {
        "model": job.model,
        "tenant": job.call.tenant.name,
        "tokens": None if job.tokens is None else len(job.tokens),
        **_plan(considered),
    }
    expected = considered.expected
    if expected is not None:
        told["expected"] = {
            "seconds": _rounded(expected.seconds),
            "held": expected.held,
            "after": _rounded(expected.after),
        }
    held: Mapping[str, Held] = considered.residency if considered.residency is not None else {}
    size = considered.fleet.staff.decode[0].block_size if considered.fleet.staff.decode else 0
    told["prefill"] = [
        {**_holding(one.worker, held, size), **_costs(one)} for one in candidates[:MOST_CANDIDATES]
    ]
    told["decode"] = [
        {**_holding(worker, held, size), "in_flight": int(considered.fleet.load[at])}
        for at, worker in enumerate(considered.fleet.staff.decode)
    ]
    return told


def _plan(considered: Considered) -> dict[str, str]:
    plan = considered.plan
    if isinstance(plan, Layout):
        return {"plan": "prefill"}
    if isinstance(plan, DecodeOnly):
        return {"plan": "decode-only", "reason": plan.reason, "worker": plan.decode.worker}
    return {"plan": "reject", "reason": plan.reason}


def _holding(worker: Announce, held: Mapping[str, Held], size: int) -> dict[str, Any]:
    found = held[worker.worker] if worker.worker in held else Held(0, 0)
    return {"worker": worker.worker, "gpu": found.gpu * size, "dram": found.dram * size}


def _costs(one: Candidate) -> dict[str, Any]:
    """``held`` counts what the worker is about to compute for others as well."""
    return {
        "held": one.held,
        "seconds": _rounded(one.seconds),
        "work": _rounded(one.work),
        "prompts": one.prompts,
        "against": _rounded(one.against),
        "costs": _rounded(one.costs),
    }


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
