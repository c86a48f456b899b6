"""What a stub worker answers: bytes built before they are asked for, but for what must be new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from bench.stub import wire
from kvstore.handoff import PrefillReport, to_params

_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_STREAM_START = wire.STREAM_HEAD.removesuffix(b"\r\n")
_TIMES = b'x-kvferry-times: {"arrived_ms":0.2,"begun_ms":0.1}\r\n'
Fate = Literal["nothing to fetch", "fetched", "abandoned"]
_OUTCOMES: Mapping[Fate, bytes] = {
    "nothing to fetch": b"",
    "fetched": (
        b'x-kvferry-outcome: {"type":"Outcome","transfer":"%b","shipped":true,"local_tokens":0,'
        b'"received_tokens":16,"received_bytes":16384,"wait_ms":0.1,"reason":null}\r\n'
    ),
    "abandoned": (
        b'x-kvferry-outcome: {"type":"Outcome","transfer":"%b","shipped":false,"local_tokens":0,'
        b'"received_tokens":0,"received_bytes":0,"wait_ms":0.1,"reason":"abandoned"}\r\n'
    ),
}
_PULL = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [1],
    "remote_engine_id": "stub",
    "remote_host": "127.0.0.1",
    "remote_port": 1,
}


class Stream:
    """A decode worker's answer of ``tokens``: the first in a write of its own, then all others."""

    def __init__(self, chat: bool, model: str, tokens: int) -> None:
        frames = wire.Frames(chat, model)
        usage = {**_USAGE, "completion_tokens": tokens, "total_tokens": tokens + 1}
        self._first = frames.opening + frames.token(0, tokens == 1)
        others = [frames.token(index, index == tokens - 1) for index in range(1, tokens)]
        self.rest = b"".join(others) + frames.ending(usage, {})
        self.plain = wire.STREAM_HEAD + self._first

    def told(self, transfer: str, fate: Fate) -> bytes:
        """The head as a decode worker of kvferry's writes it, and the first token."""
        outcome = _OUTCOMES[fate].replace(b"%b", transfer.encode())
        return b"%b%b%b\r\n%b" % (_STREAM_START, _TIMES, outcome, self._first)


def prefilled(chat: bool, model: str, held: int, milliseconds: float) -> bytes:
    """A prefill worker's answer to kvferry; ``held`` tokens of the prompt were there already, and
    computing the others took so long.
    """
    return _prefilled(chat, model, to_params(PrefillReport(milliseconds, held, 0)), held)


def prefilled_for_pull(chat: bool, model: str) -> bytes:
    """A prefill worker's answer to a router that hands over what decode has to pull."""
    return _prefilled(chat, model, _PULL, 0)


def _prefilled(chat: bool, model: str, params: object, cached: int) -> bytes:
    said = {"message": {"role": "assistant", "content": "w"}} if chat else {"text": "w"}
    told = {
        "id": "stub",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, **said, "finish_reason": "length"}],
        "usage": {**_USAGE, "prompt_tokens_details": {"cached_tokens": cached}},
        "kv_transfer_params": params,
    }
    return wire.whole(200, msgspec.json.encode(told))
