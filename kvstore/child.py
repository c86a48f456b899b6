"""One supervised child: started under a keeper, heard line by line, ended for certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from kvstore import keeper

KEEPER = keeper.__file__
KILL_SECONDS = 5.0
"""How long a keeper may take to kill its group when told to."""
GONE_SECONDS = 1.0
"""How long the killed may take to disappear."""

_CHUNK_BYTES = 65_536
_LINE_BYTES = 16_384

OnLine = Callable[[str], None]


class Child:
    """A running child. :meth:`wait` may be awaited by several tasks; the others once at a time.

    Start it from the main thread: the kernel tells a keeper that its parent is gone when the
    *thread* that started it ends.
    """

    def __init__(self, keeper: asyncio.subprocess.Process, pump: asyncio.Task[None]) -> None:
        self._keeper = keeper
        self._pump = pump

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], grace: float, on_line: OnLine
    ) -> Child:
        """Runs ``argv``; each line of its output goes to ``on_line``.

        ``grace``: seconds between asking it to end and killing it.
        """
        keeper = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", KEEPER, str(grace), str(os.getpid()), *argv),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,
        )
        assert keeper.stdout is not None
        pump = asyncio.create_task(_pump(keeper.stdout, on_line), name=f"output of {keeper.pid}")
        return cls(keeper, pump)

    @property
    def group(self) -> int:
        """Process group of everything started here."""
        return self._keeper.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._keeper.returncode is not None

    async def wait(self) -> int:
        """The exit status, 128 + signal where a signal ended it. Nothing of the group is left."""
        status = await self._keeper.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                while keeper.members(self.group):
                    self.kill()
                    await asyncio.sleep(0.01)
        await asyncio.wait({self._pump}, timeout=GONE_SECONDS)
        return 128 - status if status < 0 else status

    async def stop(self, grace: float) -> int:
        """Asks it to end; after ``grace`` seconds it is killed. The exit status."""
        for request, seconds in ((signal.SIGTERM, grace), (keeper.END_NOW, KILL_SECONDS)):
            if not self.ended:
                self._keeper.send_signal(request)
            try:
                async with asyncio.timeout(seconds):
                    return await self.wait()
            except TimeoutError:
                continue
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """Kills the whole group at once; harmless when it has gone."""
        kill_group(self.group)


def kill_group(group: int) -> bool:
    """Kills every process of ``group``. False when there is none."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


async def _pump(stream: asyncio.StreamReader, on_line: OnLine) -> None:
    """Cuts ``stream`` into lines; one that is too long is cut where the limit is."""
    rest = b""
    while chunk := await stream.read(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > _LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if line.strip():
                on_line(line.decode(errors="replace").rstrip())
    if rest.strip():
        on_line(rest.decode(errors="replace").rstrip())
