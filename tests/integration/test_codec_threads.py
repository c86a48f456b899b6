"""A process whose threads decode their first message at the same moment lives on."""

from __future__ import annotations

import subprocess
import sys

_THREADS = """
import sys, threading
from kvstore.codec import decode, encode
from kvstore.messages import Received

sys.setswitchinterval(1e-6)
message = Received(bytes(16), 0, 1)
frame, together, decoded = encode(message), threading.Barrier(8), []

def first():
    together.wait()
    decoded.append(decode(frame))

threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert decoded == [message] * 8
"""


def test_first_messages_of_many_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THREADS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
