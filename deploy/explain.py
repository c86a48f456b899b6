"""``kvferry explain``: asks a running proxy what it would do with a request, and prints it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy import operators
from deploy.tables import table
from kvstore.errors import ConfigError


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
    """What the proxy at ``proxy`` (``cluster.admin_address``) answers. Raises ConfigError."""
    route, body = request
    path = f"/kvferry/explain/{quote(tenant, safe='')}/{route}"
    return operators.ask(proxy, token, "POST", path, body)


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
    lines += ["", *table(told["prefill"], _PREFILL), "", *table(told["decode"], _DECODE)]
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
