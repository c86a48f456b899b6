"""A real headless Chromium, driven over the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome")
     if (found := shutil.which(name))), None,
)  # fmt: skip
_SECONDS = 60.0
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip


class BrowserFailed(Exception):
    """The browser ended, did not answer in time, or refused a command."""


class Page:
    """One tab. ``events`` holds what the browser told of its own accord, oldest first."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number = 0
        self._session = ""
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Opens the tab and asks to be told of errors and requests."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def show(self, url: str, width: int, *, dark: bool = False, height: int = 800) -> None:
        """Loads the page at that width, CSS pixels, and waits until all of it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        seen = len(self.events)
        self.call("Page.navigate", url=url)
        until = time.monotonic() + _SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[seen:]):
            self.events.append(self._message(until))

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page. Raises BrowserFailed if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserFailed(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _SECONDS
        while "id" not in (answer := self._message(until)):
            self.events.append(answer)
        if "error" in answer:
            raise BrowserFailed(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise BrowserFailed("no answer in time")
            if not (chunk := os.read(self._answers, 1 << 20)):
                raise BrowserFailed("the browser has ended")
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        decoded: dict[str, Any] = json.loads(message)
        return decoded


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile, ended with the block."""
    assert COMMAND is not None
    # The browser reads commands from its descriptor 3 and answers on 4; ours are kept above both.
    theirs_in, ours_out = (_high(end) for end in os.pipe())
    ours_in, theirs_out = (_high(end) for end in os.pipe())

    def place() -> None:
        os.dup2(theirs_in, 3)
        os.dup2(theirs_out, 4)

    with (profile / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [COMMAND, *_FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=place, pass_fds=(3, 4), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Page(ours_out, ours_in)
        page.attach()
        yield page
    finally:
        os.close(ours_out)  # at the end of its commands it ends itself, with its children
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_in)


def _high(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
