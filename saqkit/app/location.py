"""Where the reference application keeps its data unless told otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def database_url(url: str | None = None) -> str:
    """`url`, else `SAQKIT_DATABASE_URL`, else a SQLite file in the state folder (`SAQKIT_STATE` moves it)."""
    if chosen := url or os.environ.get("SAQKIT_DATABASE_URL"):
        return chosen
    folder = Path(os.environ.get("SAQKIT_STATE") or platformdirs.user_state_dir("saqkit", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'saqkit.db'}"
