"""The proxy as a process: it starts light, says what is wrong in one line, and stops cleanly."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.places import free_port
from kvstore import probe
from kvstore.credentials import TOKEN_HEADER, load_or_create
from proxy.__main__ import main
from proxy.following import LOOK_SECONDS
from tests.support.relays import RunningRelay

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


async def metrics(folder: Path, port: int) -> bytes:
    token = {TOKEN_HEADER: load_or_create(folder / "state").http_token()}
    socket = f"unix:{folder}/run/proxy.{port}.admin"
    assert (await probe.get(socket, "/metrics", 5.0)).status == 401
    return (await probe.get(socket, "/metrics", 5.0, token)).body


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
            assert get(f"http://127.0.0.1:{port}/metrics")[0] == 404
            assert b"kvferry_requests" in asyncio.run(metrics(tmp_path, port))
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
        assert process.returncode in {0, -signal.SIGTERM}
        assert "Traceback" not in stderr
        assert not list((tmp_path / "run").iterdir())


@contextmanager
def serving(file: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A proxy that answers."""
    command = [sys.executable, "-m", "proxy", "--config", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            await_(lambda: answers(port) or process.poll() is not None)
            yield process
        finally:
            process.kill()


def answers(port: int) -> bool:
    try:
        return get(f"http://127.0.0.1:{port}/health")[0] == 200
    except urllib.error.URLError:
        return False


def await_(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_workers_come_and_go_in_the_cluster_file(tmp_path: Path) -> None:
    port = free_port()
    file = config(tmp_path, port)
    text = file.read_text()
    run_dir, keys = tmp_path / "run", load_or_create(tmp_path / "state")
    workers = [
        RunningRelay(run_dir, keys, f"zmq+ipc://{run_dir}/{name}.feed", "prefill", worker=name)
        for name in ("prefill-0", "prefill-1")
    ]

    def count() -> int:
        counted = json.loads(get(f"http://127.0.0.1:{port}/ready")[1])["prefill"]
        assert isinstance(counted, int)
        return counted

    try:
        for worker in workers:
            worker.relay.set_state("ready")
        with serving(file, port) as process:
            await_(lambda: count() == 1)
            file.write_text(f"{text}[prefill]\ncount = 2\n")
            await_(lambda: count() == 2)
            file.write_text(f"{text}[prefill]\ncount = 1\n[proxy]\n")  # twice a section
            time.sleep(3 * LOOK_SECONDS)
            file.write_text(f"{text}[prefill]\ncount = 1\n[model]\nblock_size = 16\n")
            time.sleep(3 * LOOK_SECONDS)
            assert count() == 2
            file.write_text(text)
            await_(lambda: count() == 1)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=10)
    finally:
        for worker in workers:
            worker.stop()
    refused = [line for line in stderr.splitlines() if "is not followed" in line]
    assert len(refused) == 2
    assert "TOML" in refused[0]
    assert "model differs" in refused[1]
    assert "Traceback" not in stderr


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
