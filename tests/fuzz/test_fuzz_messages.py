"""The corpus stays harmless, and some thousand inputs grown from it are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from kvstore.codec import well_formed
from kvstore.messages import AnyMessage
from tests.fuzz.seed_corpus import CORPUS, seeds
from tests.fuzz.target import DOORS, Target, unpack

INPUTS = sorted(CORPUS.iterdir())
RUNS = 20_000


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name)
def test_an_input_that_was_kept_is_harmless(target: Target, path: Path) -> None:
    target.try_one(path.read_bytes())


def test_the_corpus_is_of_this_protocol() -> None:
    """Else: python -m tests.fuzz.seed_corpus."""
    inputs = [unpack(path.read_bytes()) for path in INPUTS]
    assert {door for door, _ in inputs} == set(DOORS)
    messages = {type(well_formed(frames[0])) for _, frames in inputs}
    assert messages >= set(get_args(AnyMessage))
    for name, data in seeds():
        assert (CORPUS / f"seed-{name}").read_bytes() == data


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_what_grows_from_the_corpus_is_harmless(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_messages", f"-runs={RUNS}", "-seed=1"]
    root = Path(__file__).parents[2]
    crash = f"-artifact_prefix={tmp_path}/"
    done = subprocess.run(
        [*command, crash], cwd=root, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:].decode(errors="replace")
    assert f"Done {RUNS}".encode() in done.stderr
