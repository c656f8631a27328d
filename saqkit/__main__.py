"""`python -m saqkit` is the command `saqkit`."""

from __future__ import annotations

import sys

from saqkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
