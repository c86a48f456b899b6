"""Credentials: made once, private, the same for everyone who reads them."""

from __future__ import annotations

import multiprocessing
import os
import stat
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from kvstore.credentials import load, load_or_create
from kvstore.errors import ConfigError


def test_first_start_creates_private_files_and_later_starts_read_them(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    first = load_or_create(state)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    files = sorted((state / "keys").iterdir())
    assert [file.name for file in files] == [
        "cluster.secret",
        "decode.curve",
        "prefill.curve",
        "proxy.curve",
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert load_or_create(state) == first
    assert [entry.name for entry in state.iterdir()] == ["keys"]


def test_derived_keys_differ_from_each_other_and_between_clusters(tmp_path: Path) -> None:
    ours, theirs = load_or_create(tmp_path / "a"), load_or_create(tmp_path / "b")
    derived = [ours.salt_key(), ours.transport_key(), bytes.fromhex(ours.http_token())]
    assert len(set(derived)) == 3
    assert all(len(key) == 32 for key in derived)
    assert ours.salt_key() != theirs.salt_key()
    publics = {ours.public_key(role) for role in ("proxy", "prefill", "decode")}
    assert len(publics) == 3


def test_repr_shows_no_secret(tmp_path: Path) -> None:
    made = load_or_create(tmp_path / "s")
    shown = repr(made) + repr(made.pairs["proxy"])
    for role in ("proxy", "prefill", "decode"):
        assert made.secret_key(role).decode() not in shown
    assert repr(made.secret) not in shown
    assert made.secret.hex() not in shown


@pytest.mark.parametrize("which", ["", "keys", "keys/cluster.secret", "keys/proxy.curve"])
def test_refuses_what_others_can_read(tmp_path: Path, which: str) -> None:
    state = tmp_path / "s"
    load_or_create(state)
    path = state / which
    path.chmod(path.stat().st_mode | 0o040)
    with pytest.raises(ConfigError, match="chmod") as caught:
        load_or_create(state)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_what_belongs_to_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_or_create(tmp_path / "s")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(ConfigError, match="belongs to user"):
        load_or_create(tmp_path / "s")


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_refuses_a_damaged_key(tmp_path: Path, content: bytes) -> None:
    load_or_create(tmp_path / "s")
    (tmp_path / "s" / "keys" / "cluster.secret").write_bytes(content)
    with pytest.raises(ConfigError, match="start anew"):
        load_or_create(tmp_path / "s")


def test_refuses_a_key_behind_a_link_and_an_incomplete_folder(tmp_path: Path) -> None:
    load_or_create(tmp_path / "s")
    key = tmp_path / "s" / "keys" / "cluster.secret"
    key.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"cluster\.secret"):
        load_or_create(tmp_path / "s")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"cluster\.secret"):
        load_or_create(tmp_path / "s")


def test_who_only_asks_makes_no_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no keys in .*: start the cluster, or copy them"):
        load(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert load_or_create(tmp_path / "s") == load(tmp_path / "s")
    (tmp_path / "s" / "keys" / "cluster.secret").chmod(0o640)
    with pytest.raises(ConfigError, match="open to other users"):
        load(tmp_path / "s")


def test_unwritable_place_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep keys"):
        load_or_create(tmp_path / "file" / "state")


def _start(state: Path, barrier: Barrier, results: Queue[bytes]) -> None:
    barrier.wait(10)
    results.put(load_or_create(state).secret)


def test_processes_starting_at_once_agree(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(6), fork.Queue()
    starts = [
        fork.Process(target=_start, args=(tmp_path / "s", barrier, results)) for _ in range(6)
    ]
    for start in starts:
        start.start()
    seen = {results.get(timeout=20) for _ in starts}
    for start in starts:
        start.join(20)
    assert len(seen) == 1
    assert [entry.name for entry in (tmp_path / "s").iterdir()] == ["keys"]
