"""Nothing starts with a forbidden setting, and ``kvferry doctor`` tells why. No engine needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvstore.child import KEEPER

FORBIDDEN = {
    "LMCACHE_CONFIG_FILE": "/etc/lmcache-s3cret.yaml",
    "LMCACHE_LOCAL_DISK": "file:///var/s3cret",
    "LMCACHE_REMOTE_URL": "redis://user:s3cret@10.0.0.1:6379",
    "LMCACHE_GDS_PATH": "/mnt/s3cret",
    "LMCACHE_COORDINATOR_URL": "http://s3cret:9300",
    "LMCACHE_LOG_LEVEL": "DEBUG",
    "LMCACHE_TRACK_USAGE": "true",
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_LOGGING_CONFIG_PATH": "/etc/s3cret.json",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "true",
    "VLLM_TRACE_FUNCTION": "1",
    "VLLM_DEBUG_DUMP_PATH": "/tmp/s3cret",
    "VLLM_MEDIA_CACHE": "/var/cache/s3cret",
    "VLLM_V1_USE_OUTLINES_CACHE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_NO_USAGE_STATS": "0",
    "DO_NOT_TRACK": "0",
    "TORCH_TRACE": "/tmp/s3cret",
    "TORCH_COMPILE_DEBUG": "1",
    "TORCHDYNAMO_REPRO_AFTER": "dynamo",
    "KINETO_USE_DAEMON": "1",
    "CUDA_ENABLE_COREDUMP_ON_EXCEPTION": "1",
    "CUDA_COREDUMP_FILE": "/tmp/s3cret",
    "NCCL_DEBUG_FILE": "/tmp/s3cret",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://user:s3cret@10.0.0.1:4317",
    "PYTHONASYNCIODEBUG": "1",
}


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, str]:
    """An environment with nothing of this machine's in it."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }


def kvferry(environment: Mapping[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("name", "value"), FORBIDDEN.items())
def test_up_is_refused_in_one_line(
    clean: dict[str, str], tmp_path: Path, name: str, value: str
) -> None:
    done = kvferry({**clean, name: value}, "up")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"kvferry: {name}: set so that ")
    assert done.stderr.endswith(f": unset {name}\n")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize("part", ["prefill", "decode", "dram", "proxy"])
def test_each_part_by_itself_is_refused_too(
    clean: dict[str, str], tmp_path: Path, part: str
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(f'[[tenants]]\nname = "a"\nkeys_sha256 = ["{"0" * 64}"]\n')
    done = kvferry({**clean, "TORCH_TRACE": "/tmp/t"}, part, "--config", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kvferry: TORCH_TRACE: ")
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.toml"]


def test_doctor_is_clean_on_the_default_set_up(clean: dict[str, str]) -> None:
    done = kvferry(clean, "doctor")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert done.stdout.rstrip().endswith(" 0 refused")
    assert "profile laptop" in done.stdout


def test_doctor_is_red_with_a_reason_for_each(clean: dict[str, str]) -> None:
    done = kvferry({**clean, **FORBIDDEN}, "doctor", "--json")
    assert done.returncode == 1
    assert "s3cret" not in done.stdout
    told = json.loads(done.stdout)
    refused = {one["name"]: one for one in told["findings"] if one["state"] == "refused"}
    assert refused.keys() >= FORBIDDEN.keys()
    assert told["refused"] == len(refused)
    for name in FORBIDDEN:
        assert refused[name]["found"].startswith("set so that ")
        assert refused[name]["fix"] == f"unset {name}"


def test_strict_refuses_what_a_laptop_is_warned_of(clean: dict[str, str], tmp_path: Path) -> None:
    environment = {**clean, "VLLM_SERVER_DEV_MODE": "1"}
    states = {}
    for profile in ("laptop", "strict"):
        file = tmp_path / f"{profile}.toml"
        file.write_text(f'profile = "{profile}"\n')
        done = kvferry(environment, "doctor", "--config", file, "--json")
        told = json.loads(done.stdout)
        assert done.returncode == (profile == "strict")
        states[profile] = {one["name"]: one["state"] for one in told["findings"]}
    assert states["laptop"]["VLLM_SERVER_DEV_MODE"] == "warning"
    assert states["strict"]["VLLM_SERVER_DEV_MODE"] == "refused"


def test_doctor_looks_at_keys_that_others_can_read(clean: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(f'state_dir = "{tmp_path / "state"}"\n')
    keys = tmp_path / "state" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    (tmp_path / "state").chmod(0o700)
    (keys / "secret").touch(mode=0o600)
    assert kvferry(clean, "doctor", "--config", file).returncode == 0
    (keys / "secret").chmod(0o644)
    done = kvferry(clean, "doctor", "--config", file)
    assert done.returncode == 1
    assert f"chmod 600 {keys / 'secret'}" in done.stdout


CRASH = "import os; os.abort()"


def _dumped(command: list[str], folder: Path) -> bool:
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh", *command],
        cwd=folder,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode in (-signal.SIGABRT, 128 + signal.SIGABRT), done.stderr
    return any(folder.glob("core*"))


def test_what_crashes_under_a_keeper_leaves_no_core(tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern != "core":
        pytest.skip(f"cores go elsewhere on this host: {pattern}")
    program = [sys.executable, "-c", CRASH]
    if not _dumped(program, tmp_path):
        pytest.skip("this host writes no cores")
    for core in tmp_path.glob("core*"):
        core.unlink()
    keeper = [sys.executable, "-I", "-S", KEEPER, "1"]
    kept = ["/bin/sh", "-c", 'exec "$0" "$@"', *keeper, str(os.getpid()), *program]
    assert not _dumped(kept, tmp_path)


def test_where_the_hard_limit_is_zero_already_a_keeper_still_keeps() -> None:
    outside = ["unshare", "-Ur"] if os.geteuid() == 0 else []
    if outside and (
        shutil.which("unshare") is None
        or subprocess.run([*outside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("powerful here, and cannot be otherwise")
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
    keep = 'ulimit -c 0; exec "$0" -I -S "$1" 1 $PPID "$0" -c "$2"'
    done = subprocess.run(
        [*outside, "/bin/sh", "-c", keep, sys.executable, KEEPER, program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("(0, 0)", "")
