"""The audit finds builds with one protection removed each.

``KVFERRY_AUDIT=full`` (``make audit``) tries all of them on real engines; otherwise it is the one
that stand-ins for engines cannot show (tests/integration/bench).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.audited import audited, settings, write_models
from tests.support.live_cluster import LiveCluster
from tests.support.mutants import MUTANTS, Mutant

pytestmark = pytest.mark.engine

FULL = os.environ.get("KVFERRY_AUDIT") == "full"
SHORT = {"salt-dropped-at-lmcache"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with two adapters beside it."""
    return write_models(tmp_path_factory.mktemp("model"))


@contextmanager
def running(home: Path, model: Path, tree: Path | None = None) -> Iterator[LiveCluster]:
    cluster = LiveCluster(home, settings(model), str(model), tree)
    cluster.wait_ready()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.parametrize(
    "mutant", [one for one in MUTANTS if FULL or one.name in SHORT], ids=lambda one: one.name
)
def test_a_build_without_a_protection_is_found(mutant: Mutant, model: Path, tmp_path: Path) -> None:
    tree = mutant.build(tmp_path / "tree")
    with running(tmp_path, model, tree) as cluster:
        code, _ = audited(cluster, tmp_path, "deterministic")
    assert code == 1
