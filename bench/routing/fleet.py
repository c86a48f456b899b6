"""``python -m bench.routing.fleet --config FILE``: all workers of a cluster file, as stubs.

Prints a line when every one of them listens. The cluster's network is TCP.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from bench.driving.quiet import no_collections
from bench.routing.feeds import Feed, context
from bench.routing.holdings import Holding
from bench.routing.rendering import Renderer
from bench.routing.tally import Tally
from bench.routing.worker import CURVE, Asker, Computing, Host, Worker
from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.credentials import load_or_create
from kvstore.errors import ConfigError
from kvstore.messages import PROTOCOL_VERSION, ROLES, Announce, Role

READY = "all listen"
OUTPUT_TOKENS = 16
BLOCKS = 1 << 16
"""That a worker holds at most: about a million tokens."""

_MODEL_LENGTH = 1 << 20
_BACKLOG = 4096


async def serve(config: ClusterConfig, blocks: int, computes: bool) -> list[asyncio.Server]:
    """Every worker of ``config``, with room for ``blocks``. Raises ConfigError, OSError."""
    tally = Tally([Holding(blocks) for _ in range(config.prefill.count)], random.Random(0))

    def replayed(proxy: str) -> None:
        tally.replayed(proxy, time.monotonic())

    credentials = load_or_create(Path(config.state_dir))
    host = Host(
        config.model.name,
        OUTPUT_TOKENS,
        config.model.block_size,
        credentials.http_token(),
        Renderer(Path(config.model.path)),
        Computing(CURVE, tally) if computes else None,
    )
    zmq_context = context(sum(config.workers(role).count for role in ROLES))
    servers = []
    for role in ROLES:
        for index in range(config.workers(role).count):
            announce, uri = announcement(config, role, index)
            announce = msgspec.structs.replace(announce, capacity_blocks=blocks)
            feed = Feed(zmq_context, announce, uri, credentials, replayed)
            servers.append(await _listen(Worker(role, host, feed, Holding(blocks)), announce.http))
    return servers


def announcement(config: ClusterConfig, role: Role, index: int) -> tuple[Announce, str]:
    """What a worker announces, and on which address."""
    where = cluster.addresses(config, Path(config.run_dir), role, index)
    announce = Announce(
        version=PROTOCOL_VERSION,
        worker=cluster.worker_name(role, index),
        role=role,
        generation="1",
        state="ready",
        model=config.model.name,
        http=where.http,
        ship=where.ship,
        fingerprint="stub",
        block_size=config.model.block_size,
        max_model_len=_MODEL_LENGTH,
        capacity_blocks=BLOCKS,
        seq=0,
    )
    return announce, where.feed


async def _listen(worker: Worker, http: str) -> asyncio.Server:
    host, _, port = http.removeprefix("http://").rpartition(":")
    return await asyncio.get_running_loop().create_server(
        lambda: Asker(worker), host, int(port), backlog=_BACKLOG
    )


async def _forever(config: ClusterConfig, blocks: int, computes: bool) -> None:
    servers = await serve(config, blocks, computes)
    with no_collections():
        print(f"{READY}: {len(servers)} workers", flush=True)
        await asyncio.Event().wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is ended. 2 for what cannot be."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing.fleet", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="that a worker has room for")
    parser.add_argument("--computes", action="store_true", help="take time, and count what is held")
    options = parser.parse_args(argv)
    try:
        uvloop.run(_forever(cluster.load(options.config), options.blocks, options.computes))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
