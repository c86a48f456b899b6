"""The copy of the proxy that keeps nobody apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.isolation.builds import Piece, copied, without_isolation
from bench.isolation.settings import IsolationFailed

KEY = "a'b\"c"
ASK = """
import json, sys
from kvstore.cluster import Tenant
from kvstore.salts import owner
from proxy import app, dispatch, pipeline, requests, tenants
from proxy.identity import Keyring

ring = Keyring([Tenant(name="only", keys_sha256=("0" * 64,))], "token")
names = [ring.tenant(f"Bearer {key}") for key in (sys.argv[1], "another")]
salts = {pipeline.Pipeline._salt(None, None, None, None) for _ in range(2)}
body = b'{"messages": [{"role": "user", "content": "?"}], "cache_salt": "x", "no_store": true}'
asked = requests.parse("chat", body)
print(json.dumps([
    pipeline.__file__,
    [one and one.name for one in names],
    [owner(one) is not None and owner(one).kept for one in salts],
    "cache_salt" in asked.body and asked.kept,
]))
"""


def test_a_copy_without_isolation_knows_one_client_and_one_salt(tmp_path: Path) -> None:
    packages = copied(tmp_path / "copy", without_isolation(KEY))
    command = [sys.executable, "-P", "-c", ASK, KEY]
    told = subprocess.run(
        command, env={"PYTHONPATH": str(packages)}, capture_output=True, check=True, text=True
    )
    file, names, kept, unjudged = json.loads(told.stdout)
    assert file.startswith(str(packages))
    assert names == ["only", None]
    assert kept == [True]
    assert unjudged


def test_a_copy_without_changes_is_the_proxy_as_it_is(tmp_path: Path) -> None:
    packages = copied(tmp_path / "copy", [])
    text = {path.name: path.read_bytes() for path in (packages / "proxy").glob("*.py")}
    assert text == {path.name: path.read_bytes() for path in Path("proxy").glob("*.py")}


@pytest.mark.parametrize("old", ["no such text\n", "import"])
def test_a_proxy_that_has_changed_is_not_compared(tmp_path: Path, old: str) -> None:
    with pytest.raises(IsolationFailed, match=r"proxy/app\.py has changed"):
        copied(tmp_path / "copy", [Piece("proxy/app.py", old, "")])
