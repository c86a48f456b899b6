"""LoRA adapters as they lie on disk: which there are, and what tells one's weights from another's.

An adapter is two files of a folder. Its revision is a digest of both, so that a name which comes to
stand for other weights is another model to everybody who keeps KV. What the revision was taken of
and what an engine then loads need not be the same: see :func:`read`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from kvstore.cluster import Adapter, ClusterConfig
from kvstore.errors import ConfigError
from kvstore.messages import ServedAdapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
"""All that an engine reads of an adapter's folder."""

MOST_RANK = 512
REVISION_CHARS = 16

_MOST_CONFIG_BYTES = 1 << 20
_Rank = Annotated[int, msgspec.Meta(ge=1, le=MOST_RANK)]


class _Config(msgspec.Struct, frozen=True):
    """What matters here of a configuration that PEFT wrote."""

    r: _Rank
    peft_type: str = "LORA"
    rank_pattern: dict[str, _Rank] | None = None


@dataclass(frozen=True)
class ReadAdapter:
    """An adapter as it was found, the highest ``rank`` of its matrices, and of each file what tells
    that it was touched, though it may read as before.
    """

    served: ServedAdapter
    rank: int
    stamps: tuple[tuple[int, int, int], ...]


def require_names(config: ClusterConfig) -> None:
    """Raises ConfigError, one line, where an adapter of ``config`` has the model's name."""
    if config.model.name in (adapter.name for adapter in config.adapters):
        raise ConfigError(
            f"adapter {config.model.name} is named like the model: rename one of them"
        )


def require(config: ClusterConfig) -> None:
    """Raises ConfigError, one line, where an adapter of ``config`` is none or cannot be served.

    Its weights are not read.
    """
    require_names(config)
    for adapter in config.adapters:
        _rank(adapter)


def read(config: ClusterConfig) -> tuple[ReadAdapter, ...]:
    """All adapters of ``config`` as they are now. Takes as long as their weights take to read.

    An engine is known to have loaded what was read if this is the same before it began and after.
    Raises ConfigError as :func:`require`.
    """
    require(config)
    return tuple(map(_read, config.adapters))


def are(adapters: Sequence[ReadAdapter], config: ClusterConfig) -> bool:
    """Whether those of ``config`` are as they were when ``adapters`` were read."""
    try:
        return read(config) == tuple(adapters)
    except ConfigError:  # they are being exchanged at this moment
        return False


def served(adapters: Sequence[ReadAdapter]) -> tuple[ServedAdapter, ...]:
    """What is announced of them."""
    return tuple(adapter.served for adapter in adapters)


def _rank(adapter: Adapter) -> int:
    folder = Path(adapter.path)
    for name in FILES:
        if not (folder / name).is_file():
            raise ConfigError(f"adapter {adapter.name}: {folder} has no {name}")
    try:
        with (folder / CONFIG).open("rb") as file:
            config = msgspec.json.decode(file.read(_MOST_CONFIG_BYTES), type=_Config)
    except OSError as error:
        raise _unreadable(adapter, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"adapter {adapter.name}: {folder / CONFIG}: {error}") from None
    if config.peft_type != "LORA":
        raise ConfigError(f"adapter {adapter.name} is of kind {config.peft_type!r}, not LORA")
    return max([config.r, *(config.rank_pattern or {}).values()])


def _read(adapter: Adapter) -> ReadAdapter:
    """Its revision is over names and contents, of each the digest: no two files run together."""
    whole, stamps = hashlib.sha256(), []
    try:
        for name in FILES:
            with (Path(adapter.path) / name).open("rb") as file:
                found = os.fstat(file.fileno())
                content = hashlib.file_digest(file, "sha256").digest()
            stamps.append((found.st_ino, found.st_mtime_ns, found.st_ctime_ns))
            whole.update(len(name).to_bytes(8, "big") + name.encode() + content)
    except OSError as error:
        raise _unreadable(adapter, error) from None
    revision = whole.hexdigest()[:REVISION_CHARS]
    served = ServedAdapter(adapter.name, revision, adapter.path)
    return ReadAdapter(served, _rank(adapter), tuple(stamps))


def _unreadable(adapter: Adapter, error: OSError) -> ConfigError:
    return ConfigError(f"adapter {adapter.name}: {error.filename}: {error.strerror}")
