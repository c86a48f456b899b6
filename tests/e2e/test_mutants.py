"""The audit finds builds with one protection removed each, and nothing in the one that is whole.

``KVFERRY_AUDIT=full`` (``make audit``) tries all of them; otherwise it is two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy import models
from deploy.places import homes
from tests.support.live_cluster import KEYS, LiveCluster
from tests.support.lora_adapters import write_adapter
from tests.support.mutants import MUTANTS, Mutant
from tests.support.tiny_llama import write_tiny_llama

pytestmark = pytest.mark.engine

FULL = os.environ.get("KVFERRY_AUDIT") == "full"
SHORT = {"salt-dropped-at-lmcache", "client-salt-passed-through"}
AUDIT_SECONDS = 300.0

_SETTINGS = """
max_model_len = 2048
[prefill]
kv_gib = 0.05
[decode]
kv_gib = 0.05
[dram]
gib = 0.25
port = 0
http_port = 0
[[adapters]]
name = "polite"
path = "{folder}/polite"
[[adapters]]
name = "terse"
path = "{folder}/terse"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with two adapters beside it."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Path(models.prepare(models.DEFAULT, homes(os.environ, os.getuid()).cache, print))
    model = write_tiny_llama(folder / "tiny-llama", tokenizer)
    for seed, name in enumerate(("polite", "terse")):
        write_adapter(folder / name, model, seed)
    return model


@contextmanager
def running(home: Path, model: Path, tree: Path | None = None) -> Iterator[LiveCluster]:
    cluster = LiveCluster(home, _SETTINGS.format(folder=model.parent), str(model), tree)
    cluster.wait_ready()
    try:
        yield cluster
    finally:
        cluster.stop()


def audited(cluster: LiveCluster, home: Path) -> tuple[int, dict[str, Any]]:
    """The audit's exit code, and what it writes."""
    out = home / "audit.json"
    command = [sys.executable, "-m", "deploy.cli", "audit", "--json", str(out)]
    command += ["--config", str(cluster.run_dir / "cluster.toml"), "--only", "deterministic"]
    for tenant in ("red", "blue"):
        command += ["--key", KEYS[tenant]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_SECONDS)
    print(done.stdout, done.stderr)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode, json.loads(out.read_text())


def test_a_whole_build_passes(model: Path, tmp_path: Path) -> None:
    with running(tmp_path, model) as cluster:
        code, told = audited(cluster, tmp_path)
    assert (code, told["metrics"]["cross_tenant_cached_tokens"]) == (0, 0)
    assert told["metrics"]["same_tenant_hits"] > 0


@pytest.mark.parametrize(
    "mutant", [one for one in MUTANTS if FULL or one.name in SHORT], ids=lambda one: one.name
)
def test_a_build_without_a_protection_is_found(mutant: Mutant, model: Path, tmp_path: Path) -> None:
    tree = mutant.build(tmp_path / "tree")
    with running(tmp_path, model, tree) as cluster:
        code, _ = audited(cluster, tmp_path)
    assert code == 1
