"""Starting the engine of a prefill worker: vLLM with the producer's connector."""

from __future__ import annotations

from kvstore.cluster import ClusterConfig, WorkerSettings
from kvstore.launch import Command, Connector, engine_command
from kvstore.machine import Machine

CONNECTOR = Connector(
    "PrefillConnector", "prefill.connector", "kv_producer", "prefill.gate.PrefillGate"
)

BEHIND = ("nice", "-n", "10")
"""Where engines compute on cores that all else shares, prompts come after tokens under way: prefill
has what decode's engine and whatever serves both leave of its cores.
"""


def command(
    config: ClusterConfig, settings: WorkerSettings, machine: Machine, verbose: bool
) -> Command:
    """The engine that turns prompts into KV and ships it."""
    made = engine_command(config, settings, machine, CONNECTOR, verbose)
    return Command((*BEHIND, *made.argv), made.env) if machine.device == "cpu" else made
