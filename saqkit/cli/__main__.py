"""`python -m saqkit.cli` is `saqkit`."""

from __future__ import annotations

import sys

from saqkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
