"""Who is asked, as whom: a cluster file, keys of two tenants, one line where they are missing."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from bench.audit.deployment import Deployment, base_url, opened, ready
from bench.audit.errors import CannotAudit
from bench.cli import main
from bench.client import Client
from kvstore.cluster import ClusterConfig, Proxy, admin_socket
from kvstore.credentials import load_or_create

KEYS = {"red": "key-of-red", "blue": "key-of-blue", "more": "another-of-red"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    file = tmp_path / "cluster.toml"
    file.write_text(
        f"""run_dir = "{tmp_path}/run"
state_dir = "{tmp_path}/state"
[model]
block_size = 32
[proxy]
port = 1
[[tenants]]
name = "red"
keys_sha256 = ["{hashes["red"]}", "{hashes["more"]}"]
[[tenants]]
name = "blue"
keys_sha256 = ["{hashes["blue"]}"]
"""
    )
    load_or_create(tmp_path / "state")
    return file


def of(file: Path, *names: str) -> Deployment:
    return opened(file, [KEYS[name] for name in names])


def test_the_first_keys_tenant_owns_what_the_second_looks_for(file: Path) -> None:
    deployment = of(file, "blue", "red", "more")
    assert (deployment.owner.name, deployment.stranger.name) == ("blue", "red")
    headers = deployment.stranger.endpoint.headers
    assert headers["authorization"] == f"Bearer {KEYS['red']}"
    assert headers["x-kvferry-token"] == deployment.token
    assert [worker.name for worker in deployment.workers] == ["prefill-0", "decode-0"]
    assert not deployment.local


@pytest.mark.parametrize("names", [(), ("red",), ("red", "more")])
def test_keys_of_two_tenants_are_needed(file: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(CannotAudit, match="kvferry keygen red") as caught:
        of(file, *names)
    assert "\n" not in str(caught.value)


def test_before_anybody_serves_nothing_is_proven(file: Path) -> None:
    async def asked() -> None:
        async with Client(1.0) as client:
            await ready(of(file, "red", "blue"), client)

    with pytest.raises(CannotAudit, match=r"no worker is ready at .*: wait until one is"):
        asyncio.run(asked())


def test_a_key_of_nobodys_is_refused_and_not_repeated(file: Path) -> None:
    with pytest.raises(CannotAudit) as caught:
        opened(file, [KEYS["red"], "kvf-secret"])
    assert "secret" not in str(caught.value)


def test_a_file_that_leaves_something_open_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("block_size = 32", "block_size = 0"))
    with pytest.raises(CannotAudit, match="leaves open"):
        of(file, "red", "blue")


def test_settings_that_are_wrong_end_in_one_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["audit", "--config", str(file)]
    keys = ["--key", KEYS["red"], "--key", KEYS["blue"]]
    for words in (base, [*base, *keys, "--restart-workers"], [*base, "--keys-file", "none"]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_operators_come_in_by_the_socket_or_the_port(file: Path) -> None:
    deployment = of(file, "red", "blue")
    door = admin_socket(deployment.config, deployment.run_dir)
    assert deployment.operator.socket == door
    assert set(deployment.operator.headers) == {"x-kvferry-token"}


def test_addresses() -> None:
    for host, told in (("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]")):
        assert base_url(ClusterConfig(proxy=Proxy(host=host, port=9))) == f"http://{told}:9"
