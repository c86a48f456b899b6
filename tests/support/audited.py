"""A small cluster that can be audited in every respect, and the audit of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from deploy import models
from deploy.places import homes
from tests.support.live_cluster import KEYS, LiveCluster
from tests.support.lora_adapters import write_adapter
from tests.support.tiny_llama import write_tiny_llama

ADAPTERS = ("polite", "terse")
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
"""


def write_models(folder: Path) -> Path:
    """A tiny model, which is returned, with two adapters beside it."""
    tokenizer = Path(models.prepare(models.DEFAULT, homes(os.environ, os.getuid()).cache, print))
    model = write_tiny_llama(folder / "tiny-llama", tokenizer)
    for seed, name in enumerate(ADAPTERS):
        write_adapter(folder / name, model, seed)
    return model


def settings(model: Path) -> str:
    """Of a cluster that serves ``model`` and its adapters, from memory that is soon full."""
    named = (f'[[adapters]]\nname = "{one}"\npath = "{model.parent / one}"\n' for one in ADAPTERS)
    return _SETTINGS + "".join(named)


def audited(cluster: LiveCluster, home: Path, part: str) -> tuple[int, dict[str, Any]]:
    """The exit code of that part of the audit, and what it writes."""
    out = home / "audit.json"
    command = [sys.executable, "-m", "deploy.cli", "audit", "--json", str(out), "--only", part]
    command += ["--config", str(cluster.run_dir / "cluster.toml")]
    for tenant in ("red", "blue"):
        command += ["--key", KEYS[tenant]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_SECONDS)
    print(done.stdout, done.stderr)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode, json.loads(out.read_text())
