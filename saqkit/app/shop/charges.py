"""The books of the simulated payment provider: a file of its own, which knows each charge by its key, once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from saqkit.app.shop.money import Money
from saqkit.errors import PermanentFailure, StoreError

T = TypeVar("T")

_WAIT_S = 10.0
_COLUMNS = "key, id, amount_minor, currency, paid, reason, made_at, asked"


@dataclass(frozen=True, slots=True)
class Charge:
    """What a payment provider says of the payment it knows by `key`: `paid`, or declined for a `reason`."""

    key: str
    id: str
    money: Money
    paid: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A charge in the books: it exists from `made_at` on (Unix seconds), and was `asked` for so often."""

    charge: Charge
    made_at: float
    asked: int


class Charges:
    """The books in `path`, which several processes share. An entry that is made survives the death of any process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, "saqkit-charges")
        self._open: sqlite3.Connection | None = None

    async def enter(self, charge: Charge, made_at: float) -> Entry:
        """Make a charge, or return the one that has its key. `PermanentFailure` if that is of another amount."""

        def write(connection: sqlite3.Connection) -> Entry:
            one = (charge.key, charge.id, charge.money.minor, charge.money.currency, charge.paid, charge.reason)
            row = connection.execute(
                f"INSERT INTO charges ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, 1)"
                f" ON CONFLICT (key) DO UPDATE SET asked = asked + 1 RETURNING {_COLUMNS}",
                (*one, made_at),
            ).fetchone()
            return _entry(row)

        entry = await self._run(write)
        if entry.charge.money != charge.money:
            raise PermanentFailure(f"charge key {charge.key} was used for {entry.charge.money}, not {charge.money}")
        return entry

    async def find(self, key: str, now: float) -> Charge | None:
        """The charge of this key, if there is one by now."""

        def read(connection: sqlite3.Connection) -> Charge | None:
            query = f"SELECT {_COLUMNS} FROM charges WHERE key = ? AND made_at <= ?"
            row = connection.execute(query, (key, now)).fetchone()
            return _entry(row).charge if row else None

        return await self._run(read)

    async def entries(self) -> list[Entry]:
        """All of the books, in the order in which they were written."""
        query = f"SELECT {_COLUMNS} FROM charges ORDER BY rowid"
        return await self._run(lambda connection: [_entry(row) for row in connection.execute(query)])

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()

    async def _run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        def in_thread() -> T:
            if self._open is None:
                self._open = _connect(self.path)
            return function(self._open)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, in_thread)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: the simulated payment provider's books: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    # These are the world's books, not ours: they need to survive a process, not a power cut.
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = OFF;"
        "CREATE TABLE IF NOT EXISTS charges (key TEXT PRIMARY KEY, id TEXT NOT NULL, amount_minor INTEGER NOT NULL,"
        " currency TEXT NOT NULL, paid INTEGER NOT NULL, reason TEXT NOT NULL, made_at REAL NOT NULL,"
        " asked INTEGER NOT NULL)"
    )
    return connection


def _entry(row: tuple[str, str, int, str, int, str, float, int]) -> Entry:
    key, identity, minor, currency, paid, reason, made_at, asked = row
    return Entry(Charge(key, identity, Money(minor, currency), bool(paid), reason), made_at, asked)
