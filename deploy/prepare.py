"""``python -m deploy.prepare [MODEL …]``: built-in models, converted into the user's cache.

None named: the one that is served by default.
"""

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
        for name in sys.argv[1:] or [models.DEFAULT]:
            models.prepare(name, cache, print)
    except ConfigError as error:
        sys.stderr.write(f"kvferry: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
