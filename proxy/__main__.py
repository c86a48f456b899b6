"""``python -m proxy``: the proxy as a process of its own."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.credentials import Credentials, load_or_create
from kvstore.errors import ConfigError
from kvstore.feed import FeedClient
from kvstore.index import Directory
from kvstore.messages import Announce
from kvstore.private import require_private
from kvstore.tenant_feed import TenantFeed
from proxy.admin import Admin, Doors, create_admin
from proxy.app import Api, create
from proxy.background import running
from proxy.following import ClusterFile, feeds
from proxy.learning import Learner
from proxy.metrics import Metrics
from proxy.pipeline import Parts, Pipeline, Settings
from proxy.remembered import Remembered
from proxy.render import Renderer
from proxy.render_counts import RenderCounts
from proxy.tenant_metrics import TenantMemory
from proxy.tenants import Tenants
from proxy.upstream import Upstream

LEASE_SECONDS = 5.0
"""A worker not heard of for so long is gone; it announces itself every second."""

KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 10
"""How long answers under way may still take when the proxy is asked to end."""

log = logging.getLogger("kvferry.proxy")


def application(
    config: ClusterConfig, run_dir: Path, credentials: Credentials, file: Path
) -> ASGIApp:
    """The proxy of ``config`` as an ASGI application. Nothing is opened before it starts up.

    It follows the workers and tenants in ``file``. Raises ConfigError where that is no cluster's.
    """
    directory = Directory(LEASE_SECONDS)
    metrics = Metrics()
    upstream = Upstream(
        credentials.http_token(),
        config.proxy.connect_seconds,
        # Two legs, an abandon and a rendering, at most, of each request at a time.
        4 * config.proxy.max_requests,
    )
    settings = Settings(config.proxy, config.ship, credentials.salt_key(), config.dram)

    def ready() -> list[Announce]:
        directory.expire(time.monotonic())
        return [worker for worker in directory.workers("decode") if worker.state == "ready"]

    remembered = Remembered(config.proxy.remember_mib << 20, config.proxy.remember_tenant_mib << 20)
    learner = Learner(upstream, ready, remembered.forget)
    counts = RenderCounts(metrics.registry, lambda: remembered.size)
    renderer = Renderer(upstream, learner, remembered, counts)
    name = f"proxy-{secrets.token_hex(4)}"
    said = TenantFeed(lambda tag, epoch: tenants.raised(tag, epoch))
    feed = FeedClient(feeds(config, run_dir), credentials, name, directory, said)
    token = credentials.http_token()
    pipeline = Pipeline(settings, Parts(directory, feed, upstream, metrics, renderer))
    key, forget = credentials.salt_key(), pipeline.forget_tenant
    tenants = Tenants(config.tenants, token, key, feed, forget)
    followed = ClusterFile(file, config, run_dir, feed, tenants)

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        async with upstream:
            with closing(renderer):
                beside = {"learning": learner.run(), "following the cluster file": followed.run()}
                async with running(feed.run(pipeline.heard), beside):
                    # What is here now stays: no collection has to look at it again.
                    gc.freeze()
                    yield
        # Here, for the server ends with the signal that it was asked to end by.
        cluster.admin_socket(config, run_dir).unlink(missing_ok=True)

    api = Api(pipeline, tenants, metrics, config.proxy)
    metrics.registry.register(TenantMemory(said, tenants.named))
    admin = Admin(api, tenants, feed, directory.workers, dram=config.dram.enabled)
    return Doors(create(api, lifespan), create_admin(admin, api), config.proxy.admin_port)


def serve(config: ClusterConfig, run_dir: Path, state_dir: Path, file: Path) -> None:
    """Serves until SIGINT or SIGTERM. Raises ConfigError if it cannot start."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads are the renderer's own
    credentials = load_or_create(state_dir)
    listeners = _listeners(config, run_dir)
    settings = uvicorn.Config(
        application(config, run_dir, credentials, file),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    uvicorn.Server(settings).run(sockets=listeners)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. 0 after a clean stop, 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="python -m proxy", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the cluster's TOML file")
    parser.add_argument(
        "--follow",
        type=Path,
        metavar="FILE",
        help="that --config was made of, if it was: workers come and go in it",
    )
    parser.add_argument("--run-dir", type=Path, help="where the workers' sockets are")
    parser.add_argument("--state-dir", type=Path, help="where the cluster's keys are")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = cluster.load(options.config)
        run_dir = _folder(options.run_dir, config.run_dir, "run_dir")
        state_dir = _folder(options.state_dir, config.state_dir, "state_dir")
        serve(config, run_dir, state_dir, options.follow or options.config)
    except ConfigError as error:
        sys.stderr.write(f"kvferry: {error}\n")
        return 2
    return 0


def _folder(option: Path | None, configured: str, name: str) -> Path:
    if option is not None:
        return option
    if not configured:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"which folder? Set {name} in the configuration or give {flag}")
    return Path(configured)


def _listeners(config: ClusterConfig, run_dir: Path) -> list[socket.socket]:
    """Of the API and of operators. Raises ConfigError; then none is left open."""
    listeners = [_listen(config.proxy.host, config.proxy.port)]
    try:
        if config.proxy.admin_port:
            listeners.append(_listen(config.proxy.admin_host, config.proxy.admin_port))
        listeners.append(_listen_private(cluster.admin_socket(config, run_dir)))
    except ConfigError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen_private(path: Path) -> socket.socket:
    """A Unix socket; whom its folder lets in, which must be us alone, may connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        require_private(path.parent.stat(), path.parent)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror}") from None
    except ConfigError:
        listener.close()
        raise
    return listener


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
