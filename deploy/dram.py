"""The DRAM tier's process: LMCache's server, loopback and shared memory only, nothing on disk."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.launch import QUIET, Command

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is, by definition


def segment(config: ClusterConfig) -> str:
    """Name of the shared memory of this run folder's tier. LMCache insists on how it begins.

    By that beginning a worker's keeper knows that the segment is not the worker's to remove.
    """
    run = hashlib.sha256(config.run_dir.encode()).hexdigest()[:16]
    return f"lmcache_l1_pool_kvferry-{run}"


def command(config: ClusterConfig, on_gpu: bool, verbose: bool) -> Command:
    """The server. Its metrics stay off: they would listen on every interface."""
    dram = config.dram
    flags = ["--host", "127.0.0.1", "--port", str(dram.port)]
    flags += ["--http-host", "127.0.0.1", "--http-port", str(dram.http_port)]
    flags += ["--l1-size-gb", f"{dram.gib:g}"]
    # A reservation nobody fills must lapse before the server reaps its owner (120 s), because
    # reaping publishes it; and reserved memory is taken at once, so that being full shows early.
    flags += ["--l1-write-ttl-seconds", "30", "--l1-read-ttl-seconds", "60", "--no-l1-use-lazy"]
    # Who gives way to whom is decided in our module.
    flags += ["--chunk-size", str(dram.chunk_tokens), "--eviction-policy", "noop"]
    flags += ["--supported-transfer-mode", "auto" if on_gpu else "engine_driven"]
    flags += ["--shm-name", segment(config), "--disable-metrics"]
    feed = cluster.dram_feed(config, Path(config.run_dir), "prefill")
    settings = {"feed": feed, "operation_seconds": dram.operation_seconds}
    module = {"module_path": "kvstore.lmcache_server_module", "config": settings}
    flags += ["--server-module", json.dumps(module)]
    env = {**QUIET, "LMCACHE_LOG_LEVEL": "INFO" if verbose else "ERROR"}
    return Command((sys.executable, "-m", "lmcache.cli.main", "server", *flags), env)


def remove_segment(config: ClusterConfig) -> None:
    """Removes what a killed server has left; it would refuse to start over it."""
    (SHARED_MEMORY / segment(config)).unlink(missing_ok=True)
