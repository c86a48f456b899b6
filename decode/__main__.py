"""``python -m decode``: one decode worker as a process of its own."""

from __future__ import annotations

import sys

from decode.engine import command
from kvstore.worker import main

if __name__ == "__main__":
    sys.exit(main("decode", command))
