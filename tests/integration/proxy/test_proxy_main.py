"""The proxy as a process: it starts light, says what is wrong in one line, and stops cleanly."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deploy.places import free_port
from proxy.__main__ import main

pytestmark = pytest.mark.timeout(60)
KEY = "a-key"


def config(folder: Path, port: int) -> Path:
    for name in ("run", "state"):
        (folder / name).mkdir(mode=0o700)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    path = folder / "cluster.toml"
    path.write_text(
        f'run_dir = "{folder}/run"\nstate_dir = "{folder}/state"\n'
        f"[proxy]\nport = {port}\n"
        f'[[tenants]]\nname = "t"\nkeys_sha256 = ["{digest}"]\n'
    )
    return path


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_starts_serves_and_stops(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "proxy", "--config", str(config(tmp_path, port))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert get(f"http://127.0.0.1:{port}/health")[0] == 200
                    break
                except urllib.error.URLError:
                    assert process.poll() is None, process.communicate()[1]
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            status, body = get(f"http://127.0.0.1:{port}/ready")
            assert (status, json.loads(body)["ready"]) == (503, False)
            assert get(f"http://127.0.0.1:{port}/v1/models")[0] == 401
            assert b"kvferry_requests" in get(f"http://127.0.0.1:{port}/metrics")[1]
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
        assert process.returncode in {0, -signal.SIGTERM}
        assert "Traceback" not in stderr
        assert not list((tmp_path / "run").iterdir())


def test_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--config", str(config(tmp_path, port))]) == 2
        error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(port) in error


def test_unknown_key_in_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("[proxy]\nprot = 1\n")
    assert main(["--config", str(path)]) == 2
    assert "prot" in capsys.readouterr().err


def test_a_folder_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("")
    assert main(["--config", str(path)]) == 2
    assert "--run-dir" in capsys.readouterr().err


def test_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, proxy.__main__; "
        "print([name for name in ('torch', 'vllm', 'transformers', 'lmcache') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
