"""Where the reference application keeps its data unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from saqkit.errors import StoreError

if TYPE_CHECKING:
    from saqkit.app.database import Database


def replica_url() -> str | None:
    """`SAQKIT_REPLICA_URL`: a replica of the database of `SAQKIT_DATABASE_URL`, from which audiences are read."""
    return os.environ.get("SAQKIT_REPLICA_URL") or None


def database_url(url: str | None = None) -> str:
    """`url`, else `SAQKIT_DATABASE_URL`, else a SQLite file in the state folder (`SAQKIT_STATE` moves it).

    The state folder is made if need be; `StoreError` if it cannot be.
    """
    if chosen := url or os.environ.get("SAQKIT_DATABASE_URL"):
        return chosen
    return f"sqlite:///{state_folder() / 'saqkit.db'}"


def reports_folder(database: Database, environ: Mapping[str, str] = os.environ) -> Path:
    """Where workers write reports: `SAQKIT_REPORTS`, else beside the SQLite file, else in the state folder."""
    if given := environ.get("SAQKIT_REPORTS"):
        return Path(given)
    return Path(f"{database.where}.reports") if database.dialect == "sqlite" else state_folder() / "reports"


def state_folder() -> Path:
    """`SAQKIT_STATE`, else saqkit's folder among the user's; it is made if need be, `StoreError` if it cannot be."""
    folder = Path(os.environ.get("SAQKIT_STATE") or platformdirs.user_state_dir("saqkit", appauthor=False))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "set SAQKIT_STATE to a folder of your own, or SAQKIT_DATABASE_URL"
        raise StoreError(f"{folder}: no folder can be made there, {error.strerror} ({advice})") from error
    return folder
