"""Stand-ins for an engine: small programs that behave like one where supervision looks."""

from __future__ import annotations

import sys
from pathlib import Path

ENGINE = """
import os, signal, socket, subprocess, sys, threading, time
from multiprocessing import shared_memory

path, manner = sys.argv[1], sys.argv[2]
print("hello from the engine", flush=True)
if manner == "dies":
    sys.exit("ImportError: cannot import name 'x' from partially initialized module 'y'")
if manner == "unsupported":
    sys.exit("ValueError: Model architectures ['X'] are not supported for now")
segment = shared_memory.SharedMemory(create=True, size=4096)
core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("core", core.pid, flush=True)
print("segment", segment.name, flush=True)
if manner == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
else:
    def end(*_):
        core.kill()
        segment.close()
        segment.unlink()
        os._exit(0)
    signal.signal(signal.SIGTERM, end)

listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    connection, _ = listener.accept()
    request = connection.recv(65536).decode()
    body = {
        "/v1/models": '{"data": [{"max_model_len": 123}]}',
        "/metrics": 'vllm:cache_config_info{block_size="32",num_gpu_blocks="77"} 1.0',
    }.get(request.split()[1], "")
    connection.sendall(f"HTTP/1.1 200 OK\\r\\n\\r\\n{body}".encode())
    connection.close()
"""
"""``engine.py SOCKET MANNER``. ``well``: serves; ``deaf``: hears no SIGTERM and never serves;
``dies``: ends while starting, as by chance; ``unsupported``: ends and says it always will."""


def engine_argv(folder: Path, socket: str, manner: str) -> tuple[str, ...]:
    """The command line of a stand-in engine that answers on ``socket``."""
    program = folder / "engine.py"
    program.write_text(ENGINE)
    return (sys.executable, str(program), socket, manner)


def alive(pid: int) -> bool:
    """Whether ``pid`` runs; the dead that nobody has collected do not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
