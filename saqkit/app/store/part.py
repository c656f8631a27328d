"""What the subjects of the store share: the database, and how times and foreign words are written."""

from __future__ import annotations

import time

from saqkit.app.database import Database

_ERROR_LENGTH = 500


class Part:
    """One subject of the store. Audiences are read from `replica` if there is one, all else from `database`."""

    def __init__(self, database: Database, replica: Database | None = None) -> None:
        self._database = database
        self._replica = replica
        # Each row that SQLite's driver fetches or writes costs its thread a turn at the interpreter. Behind a busy loop
        # that is up to 5 ms, while others wait for the writer. So all rows come and go as one JSON value.
        self._as_json = database.dialect == "sqlite"


def now(at: float | None) -> float:
    """`at`, else the time of this machine's clock, in seconds since the epoch."""
    return time.time() if at is None else at


def storable(reason: str) -> str:
    """A server's words as text that both databases take: PostgreSQL has no NUL, neither has half a character."""
    return reason.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")[:_ERROR_LENGTH]
