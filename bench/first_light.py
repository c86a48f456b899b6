"""``python -m bench.first_light --json FILE``: what ``kvferry bench headline`` was called first."""

from __future__ import annotations

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["headline", *sys.argv[1:]]))
