"""A canary that is left somewhere is found there, whatever has become of the file."""

from __future__ import annotations

import multiprocessing.shared_memory
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bench.audit import processes
from bench.audit.findings import Finding
from bench.audit.volatile import canary
from bench.audit.volatile.kv import TIER, TierMemory
from bench.audit.volatile.places import Mount, Walk
from bench.audit.volatile.planting import planted
from bench.audit.volatile.searching import Searcher
from bench.audit.volatile.sweep import Sweep

MARKER = canary.new_marker()
WANTED = [*canary.text_forms(MARKER), *canary.token_forms(list(range(5000, 5016)))]


def swept(
    folder: Path,
    deployment: list[psutil.Process],
    *,
    live: frozenset[str] = frozenset(),
    control: bool = True,
    most: int = 1 << 30,
) -> Sweep:
    """A sweep of one mount, ``folder``, and of shared memory that somebody has left."""
    forms = canary.control_forms()
    shared = folder.parent / f"{folder.name}-shared"
    shared.mkdir(exist_ok=True)
    folders = [str(folder), str(shared)] if control else []
    with planted(folders, forms) as files:
        sweep = Sweep(
            searcher=Searcher(WANTED, forms, most, time.monotonic() + 60),
            mounts=[Mount(str(folder), "ext4", writable=True)],
            walk=Walk([str(folder)], time.time() - 60),
            live=live,
            others=frozenset({f"{shared}/of-others"}),
            planted=files,
            shared=str(shared),
            control=forms,
            wanted=WANTED,
        )
        sweep.run(deployment)
    return sweep


def row(sweep: Sweep, name: str) -> Finding:
    return next(one for one in sweep.findings if one.name.startswith(name))


@contextmanager
def holding(code: str, *arguments: str) -> Iterator[psutil.Process]:
    """A process that runs ``code``, says so, and waits."""
    full = f"import sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", full, *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    try:
        yield psutil.Process(child.pid)
    finally:
        child.communicate()


def test_nothing_is_found_where_nothing_is_and_the_control_always(tmp_path: Path) -> None:
    with holding("") as process:
        sweep = swept(tmp_path, [process])
    assert sweep.found == 0
    assert sweep.controls_found == len(sweep.planted) == 2
    assert {one.verdict for one in sweep.findings} == {"pass"}
    assert not list(tmp_path.iterdir())


def test_a_log_that_quotes_a_prompt_is_found(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "engine.log"
    log.parent.mkdir()
    log.write_text(f"prompt: {canary.text_of(MARKER)}\n")
    sweep = swept(tmp_path, [])
    found = row(sweep, f"{tmp_path} (")
    assert (found.verdict, found.figures["found"]) == ("fail", canary.TIMES)
    assert "engine.log" in found.why
    assert row(sweep, "files that").verdict == "invalid"  # there was no process to look into


def test_a_deleted_file_that_is_open_is_found(tmp_path: Path) -> None:
    code = (
        "import os\nf = open(sys.argv[1], 'w+')\nf.write(sys.argv[2])\nf.flush()\nos.unlink(f.name)"
    )
    with holding(code, str(tmp_path / "spool"), MARKER) as process:
        sweep = swept(tmp_path, [process])
    found = row(sweep, "files that")
    assert (found.verdict, found.figures["found"]) == ("fail", 1)
    assert "(deleted)" in found.why


def test_shared_memory_that_is_left_is_found_and_that_in_use_is_as_meant(tmp_path: Path) -> None:
    shared = tmp_path.parent / f"{tmp_path.name}-shared"
    shared.mkdir()
    (shared / "segment").write_bytes(bytes(1 << 20) + MARKER.encode())
    (shared / "of-others").write_text(MARKER)
    name = f"{shared}/segment"
    meant = row(swept(tmp_path, [], live=frozenset({name})), str(shared))
    assert meant.verdict == "pass"
    assert "text (UTF-8, JSON) 1 times" in meant.why
    left = row(swept(tmp_path, []), str(shared))
    assert (left.verdict, left.figures["found"]) == ("fail", 1)


def test_shared_memory_is_in_use_as_long_as_it_is_mapped() -> None:
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 12)
    path = f"{processes.SHARED_MEMORY}/{memory.name}"
    try:
        assert path in processes.mapped([psutil.Process()])
        memory.close()
        assert path not in processes.mapped([psutil.Process()])
    finally:
        memory.close()
        memory.unlink()


def test_a_core_file_is_found_where_the_process_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = tmp_path / "core_pattern"
    pattern.write_text("core.%p\n")
    monkeypatch.setattr("bench.audit.volatile.sweep._CORE_PATTERN", pattern)
    cores = tmp_path / "cwd"
    cores.mkdir()
    (cores / "core.77").write_bytes(bytes(5000) + WANTED[-4].pattern)
    os.utime(cores / "core.77", (0, 0))
    with holding("import os\nos.chdir(sys.argv[1])", str(cores)) as process:
        found = row(swept(tmp_path / "cwd", [process]), "core files")
    assert (found.verdict, found.figures["found"]) == ("fail", 1)


def test_what_was_left_out_is_not_a_pass(tmp_path: Path) -> None:
    (tmp_path / "much").write_bytes(bytes(1 << 20))
    assert row(swept(tmp_path, [], most=1 << 10), f"{tmp_path} (").verdict == "invalid"


def test_without_a_control_there_is_none(tmp_path: Path) -> None:
    sweep = swept(tmp_path, [], control=False)
    assert (sweep.controls_found, sweep.planted) == (0, {})
    assert "no control" in row(sweep, f"{tmp_path} (").why


def test_bytes_that_changed_in_the_tiers_memory_are_the_canarys_kv(tmp_path: Path) -> None:
    file = tmp_path / f"{TIER}x"
    file.write_bytes(bytes(1 << 20))
    memory = TierMemory([str(file), str(tmp_path / "psm_other")])
    assert memory.there
    assert memory.changed_runs() == []
    kv = os.urandom(128 << 10)
    with file.open("r+b") as out:
        out.seek(256 << 10)
        out.write(kv)
    runs = memory.changed_runs()
    assert len(runs) == 2
    assert all(len(run) == canary.KV_BYTES and run in kv for run in runs)
    assert not TierMemory([]).there
