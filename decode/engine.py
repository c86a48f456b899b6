"""Starting the engine of a decode worker: vLLM with the consumer's connector."""

from __future__ import annotations

from kvstore.cluster import ClusterConfig, WorkerSettings
from kvstore.launch import Command, Connector, engine_command
from kvstore.machine import Machine

CONNECTOR = Connector(
    "DecodeConnector", "decode.connector", "kv_consumer", "decode.gate.DecodeGate"
)


def command(
    config: ClusterConfig, settings: WorkerSettings, machine: Machine, verbose: bool
) -> Command:
    """The engine that receives KV and turns it into tokens."""
    return engine_command(config, settings, machine, CONNECTOR, verbose)
