"""The example file holds every key with its default, and nothing else."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path

import msgspec

import deploy
from kvstore import cluster
from kvstore.cluster import ClusterConfig

EXAMPLE = Path(deploy.__file__).with_name("cluster.example.toml")
ON_PURPOSE_NOT_THERE = {"tenants", "adapters"}


def test_the_example_says_exactly_the_defaults() -> None:
    assert cluster.load(EXAMPLE) == ClusterConfig()


def test_the_example_has_every_key() -> None:
    written = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    defaults = msgspec.to_builtins(ClusterConfig())
    assert set(defaults) - set(written) == ON_PURPOSE_NOT_THERE
    for section, keys in defaults.items():
        if isinstance(keys, dict):
            assert set(keys) == set(written[section]), section


def test_the_example_shows_a_tenant_that_can_be_parsed() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    tenant = text[text.index("# [[tenants]]") :].splitlines()
    shown = "\n".join(line.removeprefix("# ") for line in tenant).replace(
        "<SHA-256 of the API key, 64 hex digits>", "0" * 64
    )
    assert cluster.parse(shown).tenants[0].name == "alice"


def test_every_key_of_the_example_is_explained() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    # In [decode] as in [prefill].
    explained = {"count", "ranks", "kv_gib", "max_requests", "hosts", "first_port", "cores"}
    for before, line in pairwise(lines):
        key = line.partition(" =")[0]
        if " = " in line and not line.startswith("#") and key not in explained:
            assert before.startswith("#") or " = " in before, line
