"""The database of the reference application, one module for each subject: every statement that it runs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from saqkit.app.database import Database
from saqkit.app.store.attendance import Attendance
from saqkit.app.store.audit_log import AuditLog
from saqkit.app.store.events import Announcement, EventRow, Events
from saqkit.app.store.fan_outs import FanOuts
from saqkit.app.store.ledger_rows import GONE, Batch, Failure, LedgerRows, Progress, Recipient, SendResult
from saqkit.app.store.people import TENANTS, People, UserRow
from saqkit.app.store.tenants import Tenants

__all__ = [
    "Announcement",
    "Batch",
    "EventRow",
    "Failure",
    "GONE",
    "Progress",
    "Recipient",
    "SendResult",
    "Store",
    "TENANTS",
    "UserRow",
]


class Store(People, Events, FanOuts, LedgerRows):
    """The database of the reference application. Every method is one transaction, or one per 5,000 users; `StoreError`
    if the database is gone, full, or locked by somebody for too long. Times are seconds since the epoch.

    What the fan-out needs are methods of the store; `tenants`, `attendance` and `audit` are the rest.
    """

    def __init__(self, database: Database, replica: Database | None = None) -> None:
        super().__init__(database, replica)
        self.database = database
        self.tenants = Tenants(database)
        self.attendance = Attendance(database)
        self.audit = AuditLog(database)

    @classmethod
    async def open(cls, url: str, *, replica_url: str | None = None, pool_size: int = 5) -> Self:
        """Open `sqlite:///FILE` or `postgresql://…` and bring its tables up to date.

        `replica_url`: a replica of that database, from which audiences are read. `pool_size`: connections kept per
        process and database, and never more. Raises `StoreError`, one line: not reachable, folder missing, not a
        database, made by a newer saqkit, driver not installed, not a replica.
        """
        database = await Database.open(url, pool_size=pool_size)
        if not replica_url:
            return cls(database)
        try:
            return cls(database, await Database.open_replica(replica_url, database, pool_size=pool_size))
        except BaseException:
            await database.close()
            raise

    async def close(self) -> None:
        if self._replica is not None:
            await self._replica.close()
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
