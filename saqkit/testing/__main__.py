"""`python -m saqkit.testing`: the loopback SMTP sink at the command line."""

from __future__ import annotations

import sys

from saqkit.testing.smtp_sink import main

if __name__ == "__main__":
    sys.exit(main())
