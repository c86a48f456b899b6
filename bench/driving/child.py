"""``python -m bench.driving.child``: a process that sends its share of a load and nothing else."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from asyncio import StreamReader, StreamWriter

import uvloop

from bench.client import Client
from bench.driving import frames
from bench.driving.driver import Driver, TargetServer
from bench.driving.quiet import no_collections
from bench.records import Record

TELL_SECONDS = 0.1
_AT_ONCE = 256
"""Records told at once: encoding more would hold up the schedule for milliseconds."""


class Stop:
    """SIGTERM ends the load that runs, or the one that is prepared; never the process."""

    def __init__(self) -> None:
        self._asked = False
        self._running: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """The signal has come."""
        self._asked = True
        if self._running is not None:
            self._running.cancel()

    def prepared(self) -> None:
        """A new load: what was asked before concerned another."""
        self._asked, self._running = False, None

    def runs(self, running: asyncio.Task[None]) -> None:
        """The load begins."""
        self._running = running
        if self._asked:
            running.cancel()


async def serve(reader: StreamReader, writer: StreamWriter, stop: Stop) -> None:
    """Jobs, one after the other, until the parent closes its end."""
    while True:
        try:
            job = await frames.for_child(reader)
        except asyncio.IncompleteReadError:
            return
        if isinstance(job, frames.Job):
            stop.prepared()
            await _work(job, reader, writer, stop)


async def _work(job: frames.Job, reader: StreamReader, writer: StreamWriter, stop: Stop) -> None:
    waiting: list[Record] = []
    async with Client(job.target.timeout_seconds) as client:
        server = TargetServer(client, job.target)
        driver = Driver(server, job.schedule, job.salt, waiting.append)
        await _tell(writer, frames.Prepared())
        begin = await frames.for_child(reader)
        if not isinstance(begin, frames.Begin):
            raise TypeError(f"expected the begin, not {type(begin).__name__}")
        with no_collections():
            running = asyncio.create_task(driver.run(begin.at))
            stop.runs(running)
            while not running.done() or waiting:
                due = time.monotonic() + TELL_SECONDS
                await asyncio.wait({running}, timeout=TELL_SECONDS)
                late = None if running.done() else max(0.0, time.monotonic() - due)
                told, waiting[:] = tuple(waiting[:_AT_ONCE]), waiting[_AT_ONCE:]
                await _tell(writer, frames.Progress(told, driver.sent, driver.in_flight, late))
    if not running.cancelled():
        running.result()
    await _tell(writer, frames.Done())


async def _tell(writer: StreamWriter, message: frames.FromChild) -> None:
    if writer.is_closing():
        os._exit(0)  # the parent is gone: nobody is left to tell, or to send a load for
    writer.write(frames.encode(message))
    try:
        await writer.drain()
    except ConnectionError:
        os._exit(0)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, sys.stdout.buffer
    )
    stop = Stop()
    loop.add_signal_handler(signal.SIGTERM, stop.ask)
    await serve(reader, StreamWriter(transport, protocol, reader, loop), stop)


def _raise_descriptor_limit() -> None:
    """An overloaded server leaves thousands of requests open; shells allow about a thousand."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    # Ctrl-C goes to every process of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _raise_descriptor_limit()
    uvloop.run(_main())
