"""``kvferry explain``: asks a running proxy what it would do with a request, and prints it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from kvstore.credentials import TOKEN_HEADER
from kvstore.errors import ConfigError

SECONDS = 30.0
MOST_BYTES = 64 << 20


def read(file: Path) -> tuple[str, bytes]:
    """The route ("chat" or "completions") and body of the request in ``file``.

    Raises ConfigError.
    """
    try:
        raw = file.read_bytes()
        fields = json.loads(raw)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{file} is not JSON: give the body of a request") from None
    if not isinstance(fields, dict) or not {"messages", "prompt"} & fields.keys():
        raise ConfigError(f"{file} is no request: it has neither 'messages' nor 'prompt'")
    return ("chat" if "messages" in fields else "completions"), raw


def ask(proxy: str, token: str, tenant: str, request: tuple[str, bytes]) -> dict[str, Any]:
    """What the proxy at ``proxy`` (http://host:port) answers. Raises ConfigError."""
    route, body = request
    parts = urlsplit(proxy)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SECONDS)
    headers = {TOKEN_HEADER: token, "content-type": "application/json"}
    try:
        connection.request("POST", f"/kvferry/explain/{quote(tenant)}/{route}", body, headers)
        response = connection.getresponse()
        told = json.loads(response.read(MOST_BYTES))
    except OSError as error:
        raise ConfigError(f"no proxy answers at {proxy}: {error}") from None
    except (http.client.HTTPException, ValueError):
        raise ConfigError(f"what answers at {proxy} is no proxy of kvferry's") from None
    finally:
        connection.close()
    if not isinstance(told, dict):
        raise ConfigError(f"what answers at {proxy} is no proxy of kvferry's")
    if response.status != 200:
        fault = told.get("error")
        message = fault.get("message") if isinstance(fault, dict) else None
        raise ConfigError(f"the proxy refuses: {message or response.status}")
    return told


def text(told: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{told['model']}, tenant {told['tenant']}, {told['tokens'] or 'unknown'} tokens"]
    if told["plan"] == "prefill":
        first = told["prefill"][0]["worker"] if told["prefill"] else "a prefill worker"
        expected = told.get("expected")
        lines.append(f"prefill by {first}, shipped to decode")
        if expected:
            lines[-1] += f"; computed in {expected['seconds']:.3f} s, the wait included"
            lines[-1] += f", first token {expected['after']:.3f} s later"
    else:
        lines.append(" ".join([told["plan"], told.get("worker", ""), f"({told['reason']})"]))
    lines += ["", *_table(told["prefill"], _PREFILL), "", *_table(told["decode"], _DECODE)]
    return "\n".join(lines)


_PREFILL = {
    "prefill": "worker",
    "GPU": "gpu",
    "DRAM": "dram",
    "counted": "held",
    "prefill s": "seconds",
    "work s": "work",
    "prompts": "prompts",
    "uneven s": "against",
    "costs": "costs",
}
_DECODE = {"decode": "worker", "GPU": "gpu", "in flight": "in_flight"}


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    cells = [list(columns), *([_cell(row[key]) for key in columns.values()] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
