"""What an engine tells about itself, in its own words: its facts, and why it could not start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """An engine's limits. ``capacity_blocks``: KV blocks it can hold. Zero: not told."""

    max_model_len: int
    block_size: int
    capacity_blocks: int


_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

_HOPELESS = re.compile(
    r"(?:KV cache is needed, which is )?larger than the available KV cache memory.*"
    r"|on kv cache allocation is less than requested memory.*"
    r"|User-specified max_model_len .* is greater than the derived max_model_len[^.]*"
    r"|error: (?:unrecognized arguments|argument ).*"
    r"|ConfigError: .*"
    r"|No space left on device.*|Cannot allocate memory.*"
    r"|OSError: .*(?:address already in use|Can't load).*",
    re.IGNORECASE,
)


def facts(models: bytes, metrics: bytes) -> Facts:
    """Out of ``GET /v1/models`` and ``GET /metrics``; what is missing there is zero."""
    labels: dict[str, str] = {}
    if found := _CACHE.search(metrics.decode(errors="replace")):
        labels = dict(_LABEL.findall(found.group(1)))
    return Facts(
        max_model_len=_max_model_len(models),
        block_size=_number(labels.get("block_size", "")),
        capacity_blocks=_number(labels.get("num_gpu_blocks", "")),
    )


def _max_model_len(models: bytes) -> int:
    try:
        listed = json.loads(models)["data"][0]["max_model_len"]
    except (ValueError, KeyError, IndexError, TypeError):
        return 0
    return listed if isinstance(listed, int) else 0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


_UNSUPPORTED = re.compile(
    r"Model architectures \[[^]]*\] are not supported"
    r"|model type \S+ but Transformers does not recognize"
    r"|Unrecognized (?:configuration class|model) \S+",
)


def hopeless(lines: Iterable[str]) -> str | None:
    """Why an engine that said ``lines`` will never start; None if another try may help."""
    for line in lines:
        if found := _UNSUPPORTED.search(line):
            return f"unsupported model: {found.group(0)}"
        if found := _HOPELESS.search(line):
            return found.group(0).strip().removeprefix("ConfigError: ")
    return None


def last_error(lines: Iterable[str]) -> str:
    """The line that says best what went wrong, for one-line reports."""
    lines = list(lines)
    for line in reversed(lines):
        if re.search(r"\b\w*(?:Error|Exception)\b: ", line):
            return line.strip()
    return lines[-1].strip() if lines else "it said nothing"
