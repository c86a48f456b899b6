"""Reads a completion's event stream: bytes in any pieces become events, events become an outcome.

Lines end with LF or CRLF. An event is the ``data`` lines before an empty line; comments and other
fields are passed over. Nothing here reads a clock: each piece comes with the time it arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bench.errors import Malformed

LONGEST_EVENT = 1 << 20
"""Bytes of a line, and of the data of an event; a server that sends more is broken."""

_DONE = b"[DONE]"
_SHOWN = 300


class EventReader:
    """Cuts a stream into the data of its events. What is kept between pieces is bounded."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that ``piece`` completes. Raises Malformed."""
        if piece.endswith(b"\n\n") and not self._line and not self._data:
            # Whole events of one line each: what nearly every piece is, so it is worth its lines.
            events = piece[6:-2].split(b"\n\ndata: ")
            if (
                piece.startswith(b"data: ")
                and piece.count(b"\n") == 2 * len(events)
                and b"\r" not in piece
                and len(piece) <= LONGEST_EVENT
            ):
                return events
        if b"\n" not in piece:
            self._hold(piece)
            return []
        if self._line:
            piece = b"".join((*self._line, piece))
            self._line.clear()
            self._line_bytes = 0
        *lines, rest = piece.split(b"\n")
        events = []
        for line in lines:
            self._take(line, events)
        if rest:
            self._hold(rest)
        return events

    def finish(self) -> list[bytes]:
        """What an end of the stream completes: servers leave out the last line's end.

        Raises Malformed.
        """
        events: list[bytes] = []
        self._take(b"".join(self._line), events)
        self._line.clear()
        self._take(b"", events)
        return events

    def _hold(self, piece: bytes) -> None:
        self._line.append(piece)
        self._line_bytes += len(piece)
        if self._line_bytes > LONGEST_EVENT:
            raise Malformed(f"a line of the stream is longer than {LONGEST_EVENT} bytes")

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
        elif line.startswith(b"data:"):
            self._data_bytes += len(line)
            if self._data_bytes > LONGEST_EVENT:
                raise Malformed(f"an event of the stream is longer than {LONGEST_EVENT} bytes")
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])


class _Delta(msgspec.Struct, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class Outcome:
    """What a stream has told so far.

    ``tokens``: arrivals of the events that carried output. ``text``: the output, where it is kept.
    The counts are the server's last ones, 0 where it tells none; ``usage`` is all it said there,
    ``trailer`` an object beside it under the ``trailer_key``. ``error``: empty while all is well.
    """

    def __init__(self, trailer_key: str = "kvferry", keep_text: bool = False) -> None:
        self.tokens: list[float] = []
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.usage: Mapping[str, Any] = {}
        self.trailer: Mapping[str, Any] = {}
        self.error = ""
        self.done = False
        self._trailer_key = trailer_key
        self._texts: list[str] | None = [] if keep_text else None

    @property
    def text(self) -> str:
        """The output's text without any reasoning; empty where it is not kept."""
        return "".join(self._texts or ())

    def take(self, data: bytes, now: float) -> None:
        """The data of one event, which arrived at ``now``. Raises Malformed."""
        if data == _DONE:
            self.done = True
            return
        try:
            event = _decode(data)
            if event.usage is not None:
                self._counted(event.usage, msgspec.json.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            shown = data[:80].decode(errors="replace")
            raise Malformed(f"an event is no completion's: {error}: {shown}") from None
        if event.error:
            self.error = f"error in the stream: {event.error}"[:_SHOWN]
        choices = event.choices
        if not choices:
            return
        text = choices[0].text if choices[0].delta is None else _said(choices[0].delta)
        if text is not None:
            self.tokens.append(now)
            if self._texts is not None:
                self._texts.append(text)

    def ended(self) -> str:
        """The error of a stream that goes no further: empty if it ended well."""
        if self.error:
            return self.error
        if not self.done:
            return "the stream broke off"
        return "" if self.tokens else "no token came"

    def _counted(self, usage: _Usage, event: Mapping[str, Any]) -> None:
        details = usage.prompt_tokens_details
        self.prompt_tokens = usage.prompt_tokens or 0
        self.completion_tokens = usage.completion_tokens or 0
        self.cached_tokens = details.cached_tokens or 0 if details else 0
        self.usage = event["usage"]
        beside = event.get(self._trailer_key)
        self.trailer = beside if isinstance(beside, dict) else {}


def _said(delta: _Delta) -> str | None:
    """The text of a chat's event, perhaps empty; None where the event is no token.

    A chat begins with an event that names the role only, and may end with an empty one; between
    them an empty text is a token all the same. So is a piece of reasoning or of a tool's call.
    """
    if delta.content:
        return delta.content
    if delta.reasoning_content or delta.reasoning or delta.tool_calls:
        return ""
    return None if delta.role is not None else delta.content


_decode = msgspec.json.Decoder(_Event).decode
