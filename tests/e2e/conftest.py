"""Real engines, a real DRAM tier, real sockets: one cluster for all tests of a network kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from deploy.models import SLIDING
from tests.support.live_cluster import MODEL, LiveCluster

_SMALL = """
[prefill]
kv_gib = 0.5
[decode]
kv_gib = 0.5
[dram]
gib = 0.5
port = 0
http_port = 0
"""


def _running(
    factory: pytest.TempPathFactory, settings: str, model: str = MODEL
) -> Iterator[LiveCluster]:
    cluster = LiveCluster(factory.mktemp("cluster"), settings, model)
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """Processes talk over ipc, the default."""
    yield from _running(tmp_path_factory, _SMALL)


@pytest.fixture(scope="module")
def sliding_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """Serves a model most of whose layers attend to a window."""
    yield from _running(tmp_path_factory, _SMALL, SLIDING)


@pytest.fixture
def prompt(request: pytest.FixtureRequest) -> Callable[[int], list[int]]:
    """Prompts of random tokens: the same for a test in every run, and no other test's."""
    generator = random.Random(request.node.nodeid)
    return lambda length: [generator.randrange(100, 40000) for _ in range(length)]
