"""A worker announces the adapters that its engine has loaded, by what they are and not by name."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvstore import adapters
from kvstore.adapters import CONFIG, WEIGHTS
from kvstore.cluster import Adapter, ClusterConfig, Model, WorkerSettings
from kvstore.credentials import load_or_create
from kvstore.errors import ConfigError
from kvstore.launch import Command
from kvstore.machine import Machine
from kvstore.messages import Announce, ServedAdapter
from kvstore.relay import Relay
from kvstore.worker import Job, Worker
from tests.support.standins import engine_argv

pytestmark = pytest.mark.anyio

SECONDS = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServedAdapter, ...]]:
    """The adapters of all that the relay was told to announce."""
    told: list[tuple[ServedAdapter, ...]] = []
    original = Relay.describe

    def spy(self: Relay, announce: Announce) -> None:
        told.append(announce.adapters)
        original(self, announce)

    monkeypatch.setattr(Relay, "describe", spy)
    return told


class Scene:
    """A worker with one adapter. ``loading`` happens while the engine of that number starts."""

    def __init__(self, folder: Path, loading: Callable[[int], None] = lambda _number: None) -> None:
        self.folder, self.loading = folder, loading
        self.poet = folder / "poet"
        self.poet.mkdir()
        (self.poet / CONFIG).write_text(json.dumps({"r": 8}))
        self.hold(b"first")
        run = folder / "run"
        run.mkdir(mode=0o700)
        self.config = ClusterConfig(
            run_dir=str(run),
            state_dir=str(folder / "state"),
            model=Model(name="m"),
            adapters=(Adapter(name="poet", path=str(self.poet)),),
        )
        self.told: list[str] = []
        self.started = 0
        self.stop = asyncio.Event()
        job = Job(self.config, "prefill", 0, Machine("cpu", (0,)), self._engine, False)
        self.worker = Worker(job, load_or_create(folder / "state"), self.told.append)

    def hold(self, weights: bytes) -> None:
        (self.poet / WEIGHTS).write_bytes(weights)

    @property
    def served(self) -> tuple[ServedAdapter, ...]:
        """As the files are now."""
        return adapters.served(adapters.read(self.config))

    async def ready(self, times: int) -> None:
        async with asyncio.timeout(SECONDS):
            while sum("ready after" in line for line in self.told) < times:
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        group = (Path(self.config.run_dir) / "prefill-0.group").read_text()
        os.killpg(int(group), signal.SIGKILL)

    def _engine(
        self, _config: ClusterConfig, settings: WorkerSettings, _machine: Machine, _loud: bool
    ) -> Command:
        self.started += 1
        self.loading(self.started)
        path = settings.addresses.http.removeprefix("unix:")
        return Command(engine_argv(self.folder, path, "well"), {})


@asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[None]:
    task = asyncio.create_task(scene.worker.run(scene.stop))
    try:
        yield
    finally:
        scene.stop.set()
        await asyncio.wait_for(task, SECONDS)


async def test_they_are_known_before_the_engine_is_ready_and_taken_anew_with_each_start(
    tmp_path: Path, described: list[tuple[ServedAdapter, ...]]
) -> None:
    scene = Scene(tmp_path)
    async with running(scene):
        await scene.ready(1)
        first = scene.served
        assert described == [first, first]
        scene.hold(b"second")
        assert len(described) == 2  # the engine still has what it has loaded
        scene.kill()
        await scene.ready(2)
        second = scene.served
        assert described[2:] == [second, second]
        assert first != second


async def test_an_engine_that_may_have_loaded_something_else_is_not_served(
    tmp_path: Path,
    described: list[tuple[ServedAdapter, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def changed(number: int) -> None:
        if number == 1:
            scene.hold(b"second")

    scene = Scene(tmp_path, changed)
    first = scene.served
    async with running(scene):
        await scene.ready(1)
        assert scene.started == 2
        second = scene.served
        # Ready is told after the third: of the engine that loaded what was read.
        assert described == [first, second, second]
    assert "changed while they were loaded" in capsys.readouterr().err


async def test_what_is_no_adapter_any_more_ends_the_worker_in_one_line(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    (scene.poet / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=f"adapter poet: .* has no {WEIGHTS}"):
        await asyncio.wait_for(scene.worker.run(scene.stop), SECONDS)
    assert not scene.started
