"""A real ``lmcache server`` for tests: small, on free ports, gone without trace afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from deploy.places import free_port

START_SECONDS = 60.0


class LMCacheServer:
    def __init__(
        self, *, chunk_tokens: int = 64, gib: float = 0.25, write_ttl: int = 3, shared: bool = True
    ) -> None:
        self.port, self.http_port = free_port(), free_port()
        self.chunk_tokens, self.gib, self.write_ttl = chunk_tokens, gib, write_ttl
        self.name = f"kvferry-test-{uuid.uuid4().hex[:12]}"
        self.shared = shared
        self._run_dir = tempfile.TemporaryDirectory(prefix="kvf", dir="/tmp")
        self.feed = f"zmq+ipc://{self._run_dir.name}/dram.feed"
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            str(Path(sys.executable).with_name("lmcache")),
            *("server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--http-host", "127.0.0.1", "--http-port", str(self.http_port)),
            *("--l1-size-gb", str(self.gib), "--no-l1-use-lazy"),
            *("--shm-name", self.name if self.shared else ""),
            *("--chunk-size", str(self.chunk_tokens), "--eviction-policy", "noop"),
            *("--supported-transfer-mode", "engine_driven"),
            *("--l1-write-ttl-seconds", str(self.write_ttl)),
            *("--server-module", json.dumps(self._module())),
        ]
        quiet = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}
        self._running = subprocess.Popen(
            command,
            env=os.environ | quiet | {"LMCACHE_LOG_LEVEL": "ERROR"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.status()
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline or self._running.poll() is not None:
                    self.stop()
                    raise RuntimeError("lmcache server does not start") from None
                time.sleep(0.05)
            else:
                return

    def _module(self) -> dict[str, Any]:
        settings = {"feed": self.feed, "operation_seconds": 1.0}
        return {"module_path": "kvstore.lmcache_server_module", "config": settings}

    def status(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.http_port}/status"
        with urllib.request.urlopen(url, timeout=5) as answer:
            result: dict[str, Any] = json.load(answer)
            return result

    def locks(self) -> tuple[int, int]:
        """(chunks locked for reading, for writing)."""
        l1 = self.status()["storage_manager"]["l1_manager"]
        return l1["read_locked_count"], l1["write_locked_count"]

    def signal(self, number: signal.Signals) -> None:
        assert self._running is not None
        self._running.send_signal(number)

    def kill(self) -> None:
        assert self._running is not None
        self._running.kill()
        self._running.wait(10)

    def stop(self) -> None:
        if self._running is not None:
            self._running.send_signal(signal.SIGCONT)
            self._running.terminate()
            try:
                self._running.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        for left in Path("/dev/shm").glob(f"*{self.name}*"):
            left.unlink(missing_ok=True)

    def clear(self) -> None:
        """Drop everything that is not locked."""
        url = f"http://127.0.0.1:{self.http_port}/cache/clear"
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5).close()
