"""The command: help everywhere, one line and exit code 2 for every mistake."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path

import pytest

from deploy import checks, cli, doctor, run_folder
from kvstore import cluster, keeper


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RUNTIME_DIR", "STATE_HOME", "CACHE_HOME"):
        monkeypatch.delenv(f"XDG_{name}", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def anywhere(tmp_path: Path) -> tuple[str, str]:
    """Flags for a cluster whose ports are free whatever else runs here."""
    file = tmp_path / "anywhere.toml"
    file.write_text("[proxy]\nport = 0\n[dram]\nport = 0\nhttp_port = 0\n")
    return "--config", str(file)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", ["", "up", "prefill", "decode", "proxy", "dram", "keygen"])
def test_help_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    assert "kvferry" in capsys.readouterr().out


def test_a_key_is_shown_once_and_its_hash_can_be_pasted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["keygen", "alice"]) == 0
    out = capsys.readouterr().out
    (key,) = re.findall(r"kvf-\S+", out)
    (tenant,) = cluster.parse(out[out.index("[[tenants]]") :]).tenants
    assert tenant.name == "alice"
    assert tenant.keys_sha256 == (hashlib.sha256(key.encode()).hexdigest(),)


def test_a_bad_tenant_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "a b" in refused(capsys, "keygen", "a b")


def test_an_unknown_key_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[proxy]\nporrt = 1\n")
    assert "porrt" in refused(capsys, "up", "--config", str(file))


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/no/file.toml" in refused(capsys, "up", "--config", "/no/file.toml")


@pytest.mark.parametrize("flags", [("--prefill", "0"), ("--decode", "-1"), ("--port", "70000")])
def test_numbers_out_of_range_are_refused(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "command line" in refused(capsys, "up", *flags)


def test_a_port_in_use_names_port_and_flag(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        line = refused(capsys, "up", "--port", str(port))
    assert f"port {port} is in use" in line
    assert "--port" in line
    assert list(home.iterdir()) == []  # nothing was left behind


def test_a_missing_model_is_named(
    capsys: pytest.CaptureFixture[str], anywhere: tuple[str, str]
) -> None:
    assert "/no/model" in refused(capsys, "up", *anywhere, "--model", "/no/model")


def test_too_little_memory_says_how_much(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    anywhere: tuple[str, str],
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"w")
    monkeypatch.setattr(checks, "available_bytes", lambda: checks.GIB)
    line = refused(capsys, "up", *anywhere, "--model", str(folder))
    assert re.search(r"need about \d+\.\d GiB, 1\.0 GiB", line)


def test_a_second_up_on_the_same_port_is_refused(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    config = cluster.ClusterConfig(run_dir=str(home / "kvferry-8000"))
    with run_folder.owned(config):
        assert "runs already" in refused(capsys, "up", "--port", "8000")
    assert not (home / "kvferry-8000").exists()


def test_the_run_folder_keeps_what_is_not_ours(home: Path) -> None:
    folder = home / "mine"
    folder.mkdir(mode=0o700)
    (folder / "letter.txt").write_text("dear")
    with run_folder.owned(cluster.ClusterConfig(run_dir=str(folder))):
        for ours in ("prefill-0.http", "prefill-7.toml"):  # also who joined later
            (folder / ours).touch()
        (folder / run_folder.RESOLVED).touch()
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_a_run_folder_open_to_others_is_refused(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    (home / "kvferry-8000").mkdir(mode=0o755)
    assert "chmod 700" in refused(capsys, "up", "--port", "8000")


def test_a_worker_that_is_not_in_the_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("")
    line = refused(capsys, "prefill", "--config", str(file), "--name", "prefill-7")
    assert "prefill-7" in line


def test_a_proxy_without_tenants_says_how_to_make_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("")
    assert "keygen" in refused(capsys, "proxy", "--config", str(file))


@pytest.mark.parametrize(
    ("part", "warned"),
    [(p, w) for p in ("proxy", "dram") for w in ("", "2 warnings: kvferry doctor")],
)
def test_a_part_starts_without_cores_and_with_warnings_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    warned: str,
) -> None:
    file = tmp_path / "c.toml"
    key = "0" * 64
    file.write_text(
        f'run_dir = "{tmp_path}"\n[dram]\nport = 0\nhttp_port = 0\ngib = 0.001\n'
        f'[[tenants]]\nname = "a"\nkeys_sha256 = ["{key}"]\n'
    )
    tmp_path.chmod(0o700)
    done: list[str] = []
    monkeypatch.setattr(doctor, "require", lambda *_: warned)
    monkeypatch.setattr(keeper, "forbid_core_dumps", lambda: done.append("no cores"))
    monkeypatch.setattr(os, "execve", lambda *_: done.append("started"))
    cli.main([part, "--config", str(file)])
    assert done == ["no cores", "started"]
    assert capsys.readouterr().err == (f"{warned}\n" if warned else "")


def test_a_second_dram_tier_leaves_the_first_its_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        port = first.getsockname()[1]
        file = tmp_path / "cluster.toml"
        file.write_text(f'run_dir = "{tmp_path}/run"\n[dram]\nport = {port}\n')
        assert cli.main(["dram", "--config", str(file)]) == 2
    assert f"{port}" in capsys.readouterr().err


def test_a_cluster_without_a_dram_tier_starts_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(f'run_dir = "{tmp_path}/run"\n[dram]\nenabled = false\n')
    assert cli.main(["dram", "--config", str(file)]) == 2
    assert "dram.enabled" in capsys.readouterr().err
