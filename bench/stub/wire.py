"""The stub's bytes: what can be built before a request comes, is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    500: "Internal Server Error",
}

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_END = b"0\r\n\r\n"
_MOST_KEPT = 4096


def whole(status: int, content: bytes, kind: str = "application/json") -> bytes:
    """An answer with its length."""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def refusal(status: int, message: str) -> bytes:
    """An error as OpenAI's API tells it."""
    error = {"message": message, "type": "stub", "code": status}
    return whole(status, msgspec.json.encode({"error": error}))


def word(index: int) -> str:
    """The text of an output's token: one word, as every token of the stub."""
    return f" w{index}"


class Frames:
    """The events of one kind of stream, each in a chunk of its own."""

    def __init__(self, chat: bool, model: str) -> None:
        self._chat = chat
        self._model = model
        self._tokens: list[bytes] = []
        self._lasts: dict[int, bytes] = {}
        self._runs: dict[int, bytes] = {}
        self.opening = b""
        if chat:
            self.opening = self._event({"delta": {"role": "assistant", "content": ""}})

    def token(self, index: int, last: bool) -> bytes:
        """The event of output token ``index``, which is the last of its output or not."""
        if last:
            frame = self._lasts.get(index)
            if frame is None:
                frame = self._token(index, "length")
                if len(self._lasts) < _MOST_KEPT:
                    self._lasts[index] = frame
            return frame
        while len(self._tokens) <= min(index, _MOST_KEPT):
            self._tokens.append(self._token(len(self._tokens), None))
        return self._tokens[index] if index < _MOST_KEPT else self._token(index, None)

    def run(self, count: int) -> bytes:
        """All the events of an output of ``count`` tokens."""
        run = self._runs.get(count)
        if run is None:
            run = b"".join(self.token(index, index == count - 1) for index in range(count))
            if len(self._runs) < 64 and count <= _MOST_KEPT:
                self._runs[count] = run
        return run

    def ending(self, usage: Mapping[str, Any] | None, stub: Mapping[str, float]) -> bytes:
        """The last event, the mark of the end, and the end of the answer."""
        told: dict[str, Any] = {**self._top(), "choices": []}
        if usage is not None:
            told["usage"] = usage
        told["kvferry_stub"] = stub
        return _chunk(_data(told)) + _chunk(b"data: [DONE]\n\n") + _END

    def answer(self, count: int, usage: Mapping[str, Any], stub: Mapping[str, float]) -> bytes:
        """The whole answer to a request that does not stream."""
        text = "".join(word(index) for index in range(count))
        message = {"message": {"role": "assistant", "content": text}}
        choice = message if self._chat else {"text": text}
        told = {
            **self._top(streamed=False),
            "choices": [{"index": 0, **choice, "finish_reason": "length"}],
            "usage": usage,
            "kvferry_stub": stub,
        }
        return whole(200, msgspec.json.encode(told))

    def _token(self, index: int, reason: str | None) -> bytes:
        text = word(index)
        said = {"delta": {"content": text}} if self._chat else {"text": text}
        return self._event({**said, "logprobs": None, "finish_reason": reason})

    def _event(self, choice: Mapping[str, Any]) -> bytes:
        return _chunk(_data({**self._top(), "choices": [{"index": 0, **choice}]}))

    def _top(self, streamed: bool = True) -> dict[str, Any]:
        kind = "text_completion"
        if self._chat:
            kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": "stub", "object": kind, "created": 0, "model": self._model}


def _data(event: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(event)


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)
