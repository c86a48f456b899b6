"""``python -m deploy.prepare``: the built-in models, converted into the user's cache."""

from __future__ import annotations

import os
import sys

from deploy import models
from deploy.places import homes
from kvstore.errors import ConfigError


def main() -> int:
    """0 when all are there, 2 (and one line) when one cannot be had."""
    cache = homes(os.environ, os.getuid()).cache
    try:
        for name in models.BUILT_IN:
            models.prepare(name, cache, print)
    except ConfigError as error:
        sys.stderr.write(f"kvferry: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
