"""``kvferry doctor``: the self-check as a table; and the same check before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import decode.engine
import prefill.engine
from deploy import dram
from deploy.volatile import report, self_check
from deploy.volatile.cluster_checks import Picture
from deploy.volatile.looking import look
from kvstore.cluster import ClusterConfig
from kvstore.credentials import KEYS
from kvstore.machine import Machine
from kvstore.messages import Role
from kvstore.worker import EngineCommand, Job

_ENGINES: dict[Role, EngineCommand] = {
    "prefill": prefill.engine.command,
    "decode": decode.engine.command,
}
_NO_GENERATION = "0" * 16


def run(config: ClusterConfig, machine: Machine, as_json: bool) -> int:
    """Prints the whole check of this host for ``config``. 1 if anything is refused, else 0."""
    findings = self_check.examine(picture(config, machine, dict(os.environ)))
    text = report.as_json if as_json else report.table
    print(text(findings, config.profile))
    return int(any(finding.state == "refused" for finding in findings))


def require(config: ClusterConfig, machine: Machine) -> str:
    """The check before a start: one line about warnings, or "". Raises ConfigError, with the fix.

    Only the command's own doors ask: what they start inherits the environment that was looked at.
    """
    return self_check.require(self_check.examine(picture(config, machine, dict(os.environ))))


def picture(config: ClusterConfig, machine: Machine, environment: dict[str, str]) -> Picture:
    """All that is looked at: ``config``, this host, and what would be started with both."""
    state = Path(config.state_dir)
    keys = state / KEYS
    ours = (Path(config.run_dir), state, keys, *sorted(keys.glob("*")))
    return Picture(
        config=config,
        host=look(environment, os.geteuid(), ours),
        engines={role: _engine(config, role, machine) for role in _ENGINES},
        dram=_dram(config, machine),
    )


def _dram(config: ClusterConfig, machine: Machine) -> tuple[str, ...]:
    on_gpu = machine.device != "cpu"
    return dram.command(config, on_gpu, verbose=False).argv if config.dram.enabled else ()


def _engine(config: ClusterConfig, role: Role, machine: Machine) -> tuple[str, ...]:
    job = Job(config, role, 0, machine, _ENGINES[role], verbose=False)
    return job.engine(config, job.settings(_NO_GENERATION), machine, job.verbose).argv
