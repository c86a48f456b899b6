"""Audits the harness's own client: against a stub whose delays are known, and beside its peers."""

from bench.selftest.client import measure_client
from bench.selftest.peers import measure_peers
from bench.selftest.settings import ClientSettings, Measured, PeerSettings, SelftestFailed

__all__ = [
    "ClientSettings",
    "Measured",
    "PeerSettings",
    "SelftestFailed",
    "measure_client",
    "measure_peers",
]
