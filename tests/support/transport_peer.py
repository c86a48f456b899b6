"""One end of a transport in a process of its own, to be stopped, killed and measured.

``python -m tests.support.transport_peer send URI STATE GENERATION`` listens, has every errand of
``shared_errands`` opened and its first half supplied, all of the even ones. ``receive URI STATE``
asks for the errand numbers it reads, one a line. Both say what they did, one line each, and end
with their standard input.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from kvstore.cluster import Ship
from kvstore.credentials import load_or_create
from kvstore.receiving import Ended
from kvstore.transport.fetcher import Fetch, Fetcher
from kvstore.transport.opening import Setting, open_fetcher, open_shipper
from tests.support.transfers import GENERATION, Errand, Errands, Noise, layout_of

LAYOUT = layout_of(2, 64 << 10, 1)
BLOCKS = 256
HALF, WHOLE = 2, 4
"""Blocks of an errand."""


def shared_errands() -> list[Errand]:
    """The same in every process."""
    errands = Errands(random.Random(7), BLOCKS, BLOCKS)
    return [errands.make(WHOLE, (0,), WHOLE) for _ in range(BLOCKS // WHOLE)]


def source_pages() -> Noise:
    """What a sender has, the same in every process."""
    return Noise(LAYOUT, BLOCKS, 1)


def setting_at(state: Path) -> Setting:
    return Setting(Ship(), load_or_create(state), time.monotonic)


def fetch(fetcher: Fetcher, setting: Setting, uri: str, errand: Errand, life: str) -> None:
    """Ask the sender's generation ``life`` for an errand."""
    ready = errand.ready(LAYOUT, setting.credentials.transport_key(), generation=life)
    reservation = errand.reservation(uri, setting.clock() + 60, life)
    fetcher.fetch(Fetch(reservation, ready))


def send(uri: str, state: Path, generation: str) -> None:
    source = source_pages()
    shipper = open_shipper(uri, source.pages, LAYOUT, generation, setting_at(state))
    shipper.start()
    for number, errand in enumerate(shared_errands()):
        below = HALF if number % 2 else WHOLE
        shipper.open(errand.transfer, errand.prompt, time.monotonic() + 600)
        shipper.supply(errand.transfer, {p: b for p, b in errand.source.items() if p[1] < below})
    print(shipper.uri, flush=True)
    sys.stdin.read()
    shipper.stop()


def receive(uri: str, state: Path) -> None:
    setting = setting_at(state)
    target = Noise(LAYOUT, BLOCKS, 2)
    fetcher = open_fetcher(target.pages, LAYOUT, setting)
    fetcher.start()
    threading.Thread(target=_tell, args=(fetcher,), daemon=True).start()
    print("receiving", flush=True)
    errands = shared_errands()
    for line in sys.stdin:
        fetch(fetcher, setting, uri, errands[int(line)], GENERATION)
    fetcher.stop()


def _tell(fetcher: Fetcher) -> None:
    numbers = {errand.transfer: number for number, errand in enumerate(shared_errands())}
    while True:
        ended: list[Ended] = fetcher.take_ended(0.05)
        for end in ended:
            print(numbers[end.transfer], end.reason, flush=True)
        time.sleep(0.01)


class Peer:
    """Such a process, seen from the test."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", __name__, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.seen = psutil.Process(self.process.pid)
        self.said = self.line()
        """Its first line: a sender's address."""

    def line(self) -> str:
        """The next thing it says; it speaks before long or is killed by its test's time limit."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask_for(self, number: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")

    def mib(self) -> float:
        """Resident memory."""
        return float(self.seen.memory_info().rss) / (1 << 20)

    def end(self) -> None:
        """Kill it, whatever state it is in."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        receive(sys.argv[2], Path(sys.argv[3]))
