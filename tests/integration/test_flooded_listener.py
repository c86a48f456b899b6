"""A listener whose queue is full when its peer goes must live on.

libzmq 4.3.5 aborts the process when a heartbeat of its own is due on such a connection
(``stream_engine_base.cpp``, ``!_io_error``), so only dialers send any. Where it is tried, a process
is at stake: not this one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kvstore.transport import sockets

FLOODED = """
import sys, time
from pathlib import Path
import zmq
from kvstore.credentials import load_or_create
from kvstore.transport.sockets import SocketOptions, listen

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
context = zmq.Context()
(folder / "run").mkdir(mode=0o700)
uri = f"zmq+ipc://{folder}/run/s"
options = SocketOptions(receive_queue=1)
credentials = load_or_create(folder / "s")
listener = listen(context, uri, "prefill", frozenset({"decode"}), credentials, options)
dealer = context.socket(zmq.DEALER)
dealer.connect(uri.removeprefix("zmq+"))
for _ in range(500):
    dealer.send(bytes(10_000))
time.sleep(0.2)
dealer.close(linger=0)
time.sleep(seconds)
while listener.poll(200):
    listener.recv_multipart()
print("lives on")
context.destroy(linger=0)
"""


def test_a_flood_that_ends_while_nobody_reads(tmp_path: Path) -> None:
    seconds = 2 * sockets.HEARTBEAT_MS / 1000
    command = [sys.executable, "-c", FLOODED, str(tmp_path), str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "lives on\n"), ended.stderr
