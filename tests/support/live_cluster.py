"""A real cluster on this machine, started as a user starts it; to look inside and to break."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from deploy import explain
from deploy.models import name_of
from deploy.places import free_port
from kvstore import adapters
from kvstore.blockhash import block_chain, block_names
from kvstore.cluster import (
    ClusterConfig,
    addresses,
    admin_address,
    admin_socket,
    load,
    parse_worker_name,
)
from kvstore.credentials import TOKEN_HEADER, load_or_create
from kvstore.index import Held
from kvstore.messages import ServedAdapter
from kvstore.salts import OWNER_HEADER, Scope, owner, salt
from proxy.catalogue import Served
from tests.support.relays import following
from tests.support.relays import until as until_known

MODEL = "smollm2-135m-instruct"
KEYS = {name: f"key-of-{name}" for name in ("red", "blue", "green")}
NOBODY = "0" * 16 + "-0"
START_SECONDS = 400.0

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value of ``condition``; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


@dataclass
class Reply:
    """An answer of the API. ``chunks`` are a stream's events, in order."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    chunks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.headers["x-kvferry-path"]

    @property
    def text(self) -> str:
        if self.chunks:
            return "".join(c["choices"][0]["text"] for c in self.chunks if c["choices"])
        return str(self.body["choices"][0]["text"])

    @property
    def timing(self) -> dict[str, float]:
        """The entries of its Server-Timing header, in milliseconds."""
        entries = re.findall(r"(\w+);dur=([0-9.]+)", self.headers["server-timing"])
        return {name: float(value) for name, value in entries}

    @property
    def breakdown(self) -> dict[str, Any]:
        """What a stream's last event tells of the request's stages and cached tokens."""
        told = self.chunks[-1]["kvferry"]
        assert isinstance(told, dict)
        return told

    @property
    def cached(self) -> int:
        usage = self.chunks[-1]["usage"] if self.chunks else self.body["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])


class LiveCluster:
    """One running ``kvferry up`` with three tenants."""

    def __init__(
        self, home: Path, settings: str, model: str = MODEL, tree: Path | None = None
    ) -> None:
        """``tree``: the packages to run, if not those of the tests."""
        self._home = home
        self._tree = tree
        self._model = name_of(model)
        # Sockets need a short path, which pytest's folders do not have.
        self._runtime = tempfile.TemporaryDirectory(prefix="kvf", dir="/tmp")
        self.port = free_port()
        tenants = "".join(
            f'[[tenants]]\nname = "{name}"\n'
            f'keys_sha256 = ["{hashlib.sha256(key.encode()).hexdigest()}"]\n'
            for name, key in KEYS.items()
        )
        file = home / "cluster.toml"
        # In bfloat16 a prompt computed in other steps may go on with another token.
        model_table = f'[model]\npath = "{model}"\ndtype = "float32"\n'
        file.write_text(f"{model_table}{settings}{tenants}")
        environment = dict(
            os.environ,
            XDG_RUNTIME_DIR=self._runtime.name,
            XDG_STATE_HOME=str(home / "state"),
            VLLM_SERVER_DEV_MODE="1",  # gives engines /reset_prefix_cache
        )
        command = [sys.executable, "-m", "deploy.cli", "up"]
        command += ["--config", str(file), "--port", str(self.port)]
        self._log = (home / "log").open("w+")
        self.shared_memory_before = _shared_memory()
        if tree is not None:
            environment["PYTHONPATH"] = str(tree)
        self.process = subprocess.Popen(
            command, env=environment, cwd=tree, stdout=self._log, stderr=subprocess.STDOUT
        )

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def run_dir(self) -> Path:
        (folder,) = Path(self._runtime.name).iterdir()
        return folder

    @property
    def config(self) -> ClusterConfig:
        return load(self.run_dir / "cluster.toml")

    def log(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return "kvferry is ready" in self.log()

        until(ready, START_SECONDS, f"ready\n{self.log()[-3000:]}")

    def stop(self) -> None:
        """Ends it as Ctrl-C does, and checks that nothing is left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        _, alive = psutil.wait_procs(children, timeout=2)
        left = [path for path in Path(self._runtime.name).rglob("*") if not path.is_dir()]
        # Engines and their semaphores end with their processes; anything else would be ours.
        shared = {
            name for name in _shared_memory() - self.shared_memory_before if "kvferry" in name
        }
        self._runtime.cleanup()
        assert code == 0, self.log()[-3000:]
        assert not alive
        assert not left
        assert not shared

    # -- the API

    def complete(self, tenant: str, prompt: list[int] | str, **fields: Any) -> Reply:
        """POST /v1/completions, greedy unless said otherwise."""
        body = {"model": self._model, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
        return self.post("/v1/completions", body, KEYS[tenant])

    def stream(self, tenant: str, prompt: list[int], **fields: Any) -> Reply:
        """As ``complete``, streamed, with usage."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return self.complete(tenant, prompt, **options, **fields)

    def foretold(self, tenant: str, prompt: list[int]) -> Reply:
        """As ``stream``, asked by an operator: its breakdown has what was predicted."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {"model": self._model, "prompt": prompt, "max_tokens": 4, **options}
        token = load_or_create(Path(self.config.state_dir)).http_token()
        return self.post("/v1/completions", body, KEYS[tenant], {"x-kvferry-token": token})

    def post(
        self, path: str, body: object, key: str, more: Mapping[str, str] | None = None
    ) -> Reply:
        """``more`` headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", path, json.dumps(body), {**_headers(key), **(more or {})})
            return read(connection.getresponse())
        finally:
            connection.close()

    @contextmanager
    def opened(self, tenant: str, body: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
        """A completion that has been asked for and not read; closing it is the client's leaving."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        fields = {"model": self._model, "temperature": 0, **body}
        connection.request("POST", "/v1/completions", json.dumps(fields), _headers(KEYS[tenant]))
        try:
            yield connection
        finally:
            connection.close()

    def rendered(self, where: str, why: str = "") -> int:
        """How many prompts the proxy has counted as rendered there, and why."""
        text = self.operator("/metrics").decode()
        labels = re.escape(f'{{where="{where}",why="{why}"}}')
        found = re.search(rf"^kvferry_render_total{labels} (\S+)$", text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    # -- inside

    def adapters(self) -> dict[str, ServedAdapter]:
        """By name, as their files are now."""
        return {one.served.name: one.served for one in adapters.read(self.config)}

    def asked_for(self, name: str) -> str:
        """What a model of that name is known by to engines that start now."""
        known = self.adapters()
        return known[name].model if name in known else name

    def await_known(
        self, name: str, tenant: str, prompt: list[int], known: Held, adapter: str = ""
    ) -> None:
        """Until a proxy knows that worker ``name`` holds so many blocks of a tenant's prompt."""
        config = self.config
        keys = load_or_create(Path(config.state_dir))
        served = Served(self._model, self.adapters()[adapter] if adapter else None)
        scoped = salt(keys.salt_key(), served.within(Scope(tenant, epoch=0)))
        chain = block_chain(prompt, config.model.block_size, scoped, served.lora)

        async def follow() -> None:
            role, index = parse_worker_name(config, name)
            feed = addresses(config, self.run_dir, role, index).feed
            async with following(feed, keys) as directory:
                await until_known(lambda: directory.held(block_names(chain)).get(name) == known)

        asyncio.run(follow())

    def operator(self, path: str, method: str = "GET") -> bytes:
        """What the proxy answers its operator."""
        token = load_or_create(Path(self.config.state_dir)).http_token()
        connection = _UnixConnection(admin_socket(self.config, self.run_dir))
        try:
            connection.request(method, path, headers={TOKEN_HEADER: token})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            return response.read()
        finally:
            connection.close()

    def explain(self, tenant: str, prompt: list[int], **fields: Any) -> dict[str, Any]:
        """What the proxy would do with this completion."""
        request = "completions", json.dumps({"prompt": prompt, **fields}).encode()
        token = load_or_create(Path(self.config.state_dir)).http_token()
        return explain.ask(admin_address(self.config, self.run_dir), token, tenant, request)

    def worker(
        self, name: str, method: str, path: str, body: Any = None, claim: str = ""
    ) -> tuple[int, bytes]:
        """An HTTP request straight to a worker's engine, past the proxy.

        It says to be whose its salt is, if it has one of ours, or else whatever is claimed.
        """
        config = self.config
        token = load_or_create(Path(config.state_dir)).http_token()
        if config.network.kind == "ipc":
            connection: http.client.HTTPConnection = _UnixConnection(self.run_dir / f"{name}.http")
        else:
            section = config.prefill if name.startswith("prefill") else config.decode
            connection = http.client.HTTPConnection("127.0.0.1", section.first_port, timeout=300)
        try:
            headers = {"content-type": "application/json", TOKEN_HEADER: token}
            whose = owner(body.get("cache_salt", "")) if isinstance(body, dict) else None
            headers[OWNER_HEADER] = whose.claim if whose else claim or NOBODY
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def alone(self, prompt: list[int], salt: str, **fields: Any) -> str:
        """What one engine computes by itself: the decode worker without a ticket, cold."""
        body = {"model": self._model, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
        body["cache_salt"] = salt
        status, answer = self.worker("decode-0", "POST", "/v1/completions", body)
        assert status == 200, answer
        return str(json.loads(answer)["choices"][0]["text"])

    def forget(self, name: str) -> None:
        """Empty a worker's cache in engine memory."""

        def emptied() -> bool:
            return self.worker(name, "POST", "/reset_prefix_cache")[0] == 200

        until(emptied, 10, f"{name} forgets")
        # An engine tells its relay what it has forgotten only with its next step.
        self.step(name)
        time.sleep(1.5)

    def step(self, name: str) -> None:
        """Make a worker's engine take a step."""
        body = {"model": self._model, "prompt": [1], "max_tokens": 1}
        status, answer = self.worker(name, "POST", "/v1/completions", body)
        assert status == 200, answer

    def metric(self, name: str, metric: str) -> float:
        """One of an engine's own metrics, summed over labels."""
        status, text = self.worker(name, "GET", "/metrics")
        assert status == 200
        values = re.findall(rf"^{re.escape(metric)}(?:{{.*}})? (\S+)$", text.decode(), re.MULTILINE)
        assert values, metric
        return sum(float(value) for value in values)

    def engine(self, name: str) -> psutil.Process:
        """The process of a worker's engine that serves HTTP; its children compute."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            words = _words(process)
            if any("vllm.entrypoints" in word for word in words) and any(
                f'"worker": "{name}"' in word for word in words
            ):
                return process
        raise AssertionError(f"no engine of {name}")

    def kill_engine(self, name: str) -> None:
        """kill -9 for a worker's engine with everything that belongs to it."""
        engine = self.engine(name)
        for process in [engine, *engine.children(recursive=True)]:
            process.kill()

    def kill_dram(self) -> None:
        """kill -9 for the LMCache server."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if any("lmcache" in word for word in _words(process)):
                process.kill()

    def await_worker(self, name: str) -> None:
        """Until the proxy knows ``name`` as ready again."""

        def healthy() -> bool:
            try:
                return self.worker(name, "GET", "/health")[0] == 200
            except OSError:
                return False

        until(healthy, START_SECONDS, f"{name} is back\n{self.log()[-2000:]}")
        time.sleep(2.5)


def read(response: http.client.HTTPResponse) -> Reply:
    """A whole answer, streamed or not."""
    headers = {name.lower(): value for name, value in response.getheaders()}
    if "event-stream" not in headers.get("content-type", ""):
        return Reply(response.status, headers, json.loads(response.read()))
    events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data")]
    assert events[-1] == "[DONE]"
    return Reply(response.status, headers, {}, [json.loads(event) for event in events[:-1]])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=300)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(300)
        self.sock.connect(str(self._path))


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _headers(key: str) -> dict[str, str]:
    return {"content-type": "application/json", "authorization": f"Bearer {key}"}


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}
