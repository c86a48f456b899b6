"""``python -m prefill``: one prefill worker as a process of its own."""

from __future__ import annotations

import sys

from kvstore.worker import main
from prefill.engine import command

if __name__ == "__main__":
    sys.exit(main("prefill", command))
