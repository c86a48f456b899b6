"""``python -m tests.fuzz.fuzz_messages -runs=1000000``: libFuzzer's options, and folders if any.

Without a folder, what it finds on its way is kept nowhere but in the reports of crashes; the
corpus here is read, never written.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kvstore"]):
    from tests.fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    target = Target()
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    with tempfile.TemporaryDirectory() as found:
        writable = [] if folders else [found]
        atheris.Setup([*sys.argv, *writable, str(CORPUS)], target.try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
