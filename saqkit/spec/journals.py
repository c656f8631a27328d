"""Where recordings are, and the format of their lines: what writer and reader share, and nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

FORMAT = 1


def default_folder() -> Path:
    """Where recordings go unless told otherwise: `$SAQKIT_RECORDING`, else `recording` in saqkit's state folder."""
    import platformdirs

    if chosen := os.environ.get("SAQKIT_RECORDING"):
        return Path(chosen)
    state = os.environ.get("SAQKIT_STATE") or platformdirs.user_state_dir("saqkit", appauthor=False)
    return Path(state) / "recording"
