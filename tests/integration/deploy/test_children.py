"""Nothing outlives its supervisor: not children, not grandchildren, not shared memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore import keeper
from kvstore.child import KEEPER, Child
from tests.support.standins import alive, engine_argv

pytestmark = pytest.mark.anyio

SECONDS = 20.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.02)


class Started:
    """A stand-in engine under a keeper, and what it has said of itself."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def said(self, word: str) -> str:
        return next(line.split()[1] for line in self.lines if line.startswith(f"{word} "))

    @property
    def up(self) -> bool:
        return any(line.startswith("segment ") for line in self.lines)

    @property
    def segment(self) -> Path:
        return Path("/dev/shm", self.said("segment"))

    async def start(self, folder: Path, manner: str, grace: float) -> Child:
        argv = engine_argv(folder, str(folder / "http"), manner)
        child = await Child.start(argv, os.environ, grace, self.lines.append)
        await until(lambda: self.up or child.ended)
        return child


async def test_an_engine_asked_to_end_ends_with_all_its_own(tmp_path: Path) -> None:
    engine = Started()
    child = await engine.start(tmp_path, "well", 5.0)
    core = int(engine.said("core"))
    assert await child.stop(5.0) == 0
    assert not alive(core)
    assert not engine.segment.exists()


async def test_an_engine_that_does_not_hear_is_killed_after_its_grace(tmp_path: Path) -> None:
    engine = Started()
    child = await engine.start(tmp_path, "deaf", 0.3)
    core = int(engine.said("core"))
    began = time.monotonic()
    assert await child.stop(0.3) == 128 + signal.SIGKILL
    assert 0.3 <= time.monotonic() - began < SECONDS
    assert not alive(core)
    assert not engine.segment.exists()


async def test_what_a_killed_engine_leaves_is_removed(tmp_path: Path) -> None:
    engine = Started()
    child = await engine.start(tmp_path, "well", 5.0)
    core = int(engine.said("core"))
    (server,) = [
        pid for pid in keeper.members(child.group) if pid != core and "engine.py" in _cmdline(pid)
    ]
    os.kill(server, signal.SIGKILL)
    assert await child.wait() == 128 + signal.SIGKILL
    await until(lambda: not alive(core))
    assert not engine.segment.exists()


async def test_killing_the_group_takes_the_keeper_too(tmp_path: Path) -> None:
    engine = Started()
    child = await engine.start(tmp_path, "deaf", 5.0)
    core = int(engine.said("core"))
    shared = keeper.segments(child.group)
    assert str(engine.segment) in shared
    child.kill()
    assert await child.wait() == 128 + signal.SIGKILL
    await until(lambda: not alive(core))
    keeper.remove(shared)
    assert not engine.segment.exists()


async def test_a_semaphore_is_found_by_the_one_who_made_it(tmp_path: Path) -> None:
    program = (
        "import multiprocessing as m, time; lock = m.get_context('spawn').Lock();"
        "print('named', lock._semlock.name, flush=True); time.sleep(600)"
    )
    lines: list[str] = []
    child = await Child.start((sys.executable, "-c", program), os.environ, 5.0, lines.append)
    await until(lambda: bool(lines))
    path = f"/dev/shm/sem.{lines[0].split()[1].removeprefix('/')}"
    assert path in keeper.segments(child.group)
    await child.stop(0.1)
    await until(lambda: not Path(path).exists())


async def test_the_dram_tiers_memory_is_left_alone(tmp_path: Path) -> None:
    segment = Path("/dev/shm", f"lmcache_l1_pool_kvferry-test-{os.getpid()}")
    segment.write_bytes(bytes(4096))
    program = (
        "import mmap, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"f=open('{segment}','r+b'); m=mmap.mmap(f.fileno(), 4096);"
        "print('mapped', flush=True); import time; time.sleep(600)"
    )
    lines: list[str] = []
    try:
        child = await Child.start((sys.executable, "-c", program), os.environ, 5.0, lines.append)
        await until(lambda: "mapped" in lines)
        assert str(segment) not in keeper.segments(child.group)
        await child.stop(0.1)
        assert segment.exists()
    finally:
        segment.unlink()


SUPERVISOR = """
import asyncio, os, sys
from kvstore.child import Child

async def main():
    child = await Child.start(sys.argv[1:], os.environ, 5.0, lambda line: print(line, flush=True))
    await child.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("manner", ["well", "deaf"])
async def test_nothing_outlives_a_supervisor_killed_with_sigkill(
    manner: str, tmp_path: Path
) -> None:
    argv = engine_argv(tmp_path, str(tmp_path / "http"), manner)
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, *argv], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    engine = Started()
    while not engine.up:
        engine.lines.append(supervisor.stdout.readline().strip())
    core = int(engine.said("core"))
    supervisor.kill()
    supervisor.wait()
    await until(lambda: not alive(core) and not engine.segment.exists())


def test_a_keeper_whose_parent_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    argv = [sys.executable, "-I", "-S", KEEPER, "1", "1", "touch", str(mark)]
    assert subprocess.run(argv, check=False, timeout=SECONDS).returncode != 0
    assert not mark.exists()


async def test_output_is_cut_into_lines_however_long(tmp_path: Path) -> None:
    program = "import sys; sys.stdout.write('a\\rb\\n' + 'x' * 100_000 + '\\nend')"
    lines: list[str] = []
    child = await Child.start((sys.executable, "-c", program), os.environ, 1.0, lines.append)
    assert await child.wait() == 0
    assert lines[:2] == ["a", "b"]
    assert "".join(lines[2:-1]) == "x" * 100_000
    assert lines[-1] == "end"


async def test_exit_codes_come_through(tmp_path: Path) -> None:
    for code in (0, 2, 77):
        argv = (sys.executable, "-c", f"raise SystemExit({code})")
        child = await Child.start(argv, os.environ, 1.0, print)
        assert await child.wait() == code


def test_no_core_is_ever_dumped() -> None:
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
    argv = [sys.executable, "-I", "-S", KEEPER, "1", str(os.getpid())]
    done = subprocess.run(
        [*argv, sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(1, 1)"


def _cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
