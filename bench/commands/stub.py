"""``kvferry bench stub``: a server whose delays are known, to audit a client with."""

from __future__ import annotations

import argparse
from dataclasses import fields

from bench.load.errors import BadLoad
from bench.stub.config import StubConfig
from bench.stub.server import run as serve_stub

EXAMPLE = "kvferry bench stub --port 8001 --ttft-ms 50 --itl-ms 10"

_HELP = {
    "ttft_ms": "until the first token, milliseconds",
    "itl_ms": "between tokens, milliseconds",
    "prefill_us": "microseconds for each prompt token that is not cached",
    "slots": "requests served at once; 0: all",
    "cache_blocks": "blocks of the prefix cache; 0: none",
    "block_words": "words in a block",
    "jitter": "sigma of a lognormal factor on every delay",
    "seed": "of the jitter",
    "error_every": "refuse every n-th completion",
    "drop_every": "cut every n-th completion in the middle",
    "output_tokens": "for requests that do not say",
    "model": "the model's name",
}


def add(parser: argparse.ArgumentParser) -> None:
    """See Command."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0 picks a free one (%(default)s)")
    for field in fields(StubConfig):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"{_HELP[field.name]} (%(default)s)",
        )


def run(options: argparse.Namespace) -> int:
    """See Command."""
    try:
        config = StubConfig(
            **{field.name: getattr(options, field.name) for field in fields(StubConfig)}
        )
    except ValueError as error:
        raise BadLoad(str(error)) from None
    try:
        serve_stub(config, options.host, options.port)
    except OSError as error:
        raise BadLoad(f"cannot listen on port {options.port}: {error.strerror}") from None
    return 0
