"""Starting the engine of a prefill worker: vLLM with the producer's connector."""

from __future__ import annotations

from kvstore.cluster import ClusterConfig, WorkerSettings
from kvstore.launch import Command, Connector, engine_command
from kvstore.machine import Machine

CONNECTOR = Connector(
    "PrefillConnector", "prefill.connector", "kv_producer", "prefill.gate.PrefillGate"
)


def command(
    config: ClusterConfig, settings: WorkerSettings, machine: Machine, verbose: bool
) -> Command:
    """The engine that turns prompts into KV and ships it."""
    return engine_command(config, settings, machine, CONNECTOR, verbose)
