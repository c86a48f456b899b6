"""A worker keeps its engine up: real processes and sockets, a stand-in for the engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kvstore import cluster, restarts
from kvstore.cluster import ClusterConfig, WorkerSettings
from kvstore.credentials import load_or_create
from kvstore.errors import ConfigError
from kvstore.launch import Command
from kvstore.machine import Machine
from kvstore.messages import Announce, WorkerState
from kvstore.relay import Relay
from kvstore.worker import Job, Worker
from tests.support.standins import alive, engine_argv

pytestmark = pytest.mark.anyio

SECONDS = 30.0
MACHINE = Machine("cpu", (0,))


class Ran:
    """A worker under test: what it told, and which generations it started."""

    def __init__(self, folder: Path, manners: list[str]) -> None:
        self.folder, self.manners = folder, manners
        self.told: list[str] = []
        self.generations: list[str] = []
        self.stop = asyncio.Event()
        run, state = folder / "run", folder / "state"
        run.mkdir(mode=0o700, exist_ok=True)
        self.config = msgspec.structs.replace(
            ClusterConfig(), run_dir=str(run), state_dir=str(state)
        )
        self.job = Job(self.config, "prefill", 0, MACHINE, self._engine, False)
        self.worker = Worker(self.job, load_or_create(state), self.told.append)

    def _engine(
        self, _config: ClusterConfig, settings: WorkerSettings, _machine: Machine, _loud: bool
    ) -> Command:
        manner = self.manners[min(len(self.generations), len(self.manners) - 1)]
        self.generations.append(settings.generation)
        path = settings.addresses.http.removeprefix("unix:")
        return Command(engine_argv(self.folder, path, manner), {})

    @property
    def group(self) -> int:
        return int((Path(self.config.run_dir) / "prefill-0.group").read_text())

    def count(self, word: str) -> int:
        return sum(word in line for line in self.told)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path, *manners: str) -> AsyncIterator[Ran]:
    ran = Ran(folder, list(manners))
    task = asyncio.create_task(ran.worker.run(ran.stop))
    try:
        yield ran
        ran.stop.set()
        await asyncio.wait_for(task, SECONDS)
    finally:
        ran.stop.set()
        await asyncio.wait({task}, timeout=SECONDS)
    assert list(Path(ran.config.run_dir).iterdir()) == []


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[Announce | WorkerState | str]:
    """Everything the relay is told."""
    told: list[Announce | WorkerState | str] = []
    for name in ("describe", "set_state", "engine_restarted"):
        original = getattr(Relay, name)

        def spy(self: Relay, value: object, original: Callable[..., None] = original) -> None:
            told.append(value)  # type: ignore[arg-type]
            original(self, value)

        monkeypatch.setattr(Relay, name, spy)
    return told


async def test_a_ready_engine_is_announced_with_its_own_facts(
    tmp_path: Path, announced: list[Announce | WorkerState | str]
) -> None:
    async with running(tmp_path, "well") as ran:
        await until(lambda: ran.count("ready after") == 1)
        described = announced[0]
        assert isinstance(described, Announce)
        assert described.max_model_len == 123
        assert (described.block_size, described.capacity_blocks) == (32, 77)
        assert announced[1] == "ready"
        group = ran.group
    assert announced[-1] == "draining"
    assert not alive(group)


async def test_a_killed_engine_comes_back_as_another_generation(
    tmp_path: Path, announced: list[Announce | WorkerState | str]
) -> None:
    async with running(tmp_path, "well") as ran:
        await until(lambda: ran.count("ready after") == 1)
        os.killpg(ran.group, signal.SIGKILL)
        await until(lambda: ran.count("ready after") == 2)
        first, second = ran.generations
        assert first != second
        states = [told for told in announced if isinstance(told, str)]
        assert states == ["ready", "starting", second, "ready"]


async def test_a_start_that_dies_by_chance_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, "dies", "well") as ran:
        await until(lambda: ran.count("ready after") == 1)
        assert len(ran.generations) == 2
    assert "partially initialized" in capsys.readouterr().err


async def test_an_engine_that_says_it_is_hopeless_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Ran(tmp_path, ["unsupported"])
    with pytest.raises(ConfigError, match=r"prefill-0: unsupported model: ") as caught:
        await asyncio.wait_for(ran.worker.run(ran.stop), SECONDS)
    assert "\n" not in str(caught.value)
    assert len(ran.generations) == 1
    assert capsys.readouterr().err == ""  # the one line says it all


async def test_a_crash_loop_is_given_up_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Ran(tmp_path, ["dies"])
    monkeypatch.setattr("kvstore.worker.Restarts", lambda: restarts.Restarts(3, 0.01))
    with pytest.raises(ConfigError, match=r"ended 3 times: ImportError"):
        await asyncio.wait_for(ran.worker.run(ran.stop), SECONDS)
    assert len(ran.generations) == 3


async def test_stopping_a_start_that_hears_nothing_takes_a_moment(tmp_path: Path) -> None:
    async with running(tmp_path, "deaf") as ran:
        await until(lambda: (Path(ran.config.run_dir) / "prefill-0.group").exists())
        await until(lambda: (Path(ran.config.run_dir) / "prefill-0.group").read_text() != "")
        group = ran.group
    assert not alive(group)


async def test_the_same_worker_cannot_run_twice(tmp_path: Path) -> None:
    async with running(tmp_path, "well") as ran:
        await until(lambda: ran.count("ready after") == 1)
        second = Ran(tmp_path, ["well"])
        with pytest.raises(ConfigError, match="prefill-0 runs already"):
            await second.worker.run(second.stop)
        assert alive(ran.group)


async def test_what_a_killed_supervisor_and_keeper_left_is_ended_at_the_next_start(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    left = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import time; time.sleep(600)", "keeper.py"),
        start_new_session=True,
    )
    (run / "prefill-0.group").write_text(str(left.pid))
    (run / "prefill-0.http").touch()
    async with running(tmp_path, "well") as ran:
        await until(lambda: ran.count("ready after") == 1)
        assert await asyncio.wait_for(left.wait(), SECONDS) == -signal.SIGKILL


async def test_a_group_number_that_is_somebody_elses_now_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    other = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    (run / "prefill-0.group").write_text(str(other.pid))
    async with running(tmp_path, "well") as ran:
        await until(lambda: ran.count("ready after") == 1)
        assert alive(other.pid)
    other.kill()
    await other.wait()


def test_names_and_addresses_are_the_clusters(tmp_path: Path) -> None:
    ran = Ran(tmp_path, ["well"])
    settings = ran.job.settings("g")
    assert settings.worker == cluster.worker_name("prefill", 0)
    assert settings.addresses == cluster.addresses(
        ran.config, Path(ran.config.run_dir), "prefill", 0
    )
    assert ran.job.announce("g").http == settings.addresses.http
