"""The audit log: who did what. Entries are appended and read, never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, select

from saqkit.app.store.part import Part, now
from saqkit.app.tables import audit
from saqkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """`actor` did `action` to `target` at `at` (seconds since the epoch); `detail` is what else is worth knowing.

    `tenant` is whose data it was about, empty where it was about no tenant's.
    """

    id: int
    tenant: str
    at: float
    actor: str
    action: str
    target: str
    detail: dict[str, Any]


class AuditLog(Part):
    """Operations on queues, jobs and settings."""

    async def append(
        self,
        *,
        actor: str,
        action: str,
        target: str = "",
        tenant: str = "",
        detail: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> int:
        """Write an entry, such as actor `ada`, action `queue.pause`, target `email`, and return its id.

        `detail` has to be JSON. Raises `UsageError` if it is not, or if nobody or nothing is named.
        """
        entry = writing(actor=actor, action=action, target=target, tenant=tenant, detail=detail, at=now(at))
        return await self._database.write(lambda connection: connection.execute(entry).scalar_one())

    async def of_tenant(self, tenant: str, *, before: int | None = None, limit: int = 100) -> list[Entry]:
        """The latest entries about `tenant`, newest first; `before` the entry with this id, to page on."""
        own = select(audit).where(audit.c.tenant == tenant)
        if before is not None:
            own = own.where(audit.c.id < before)
        latest = own.order_by(audit.c.id.desc()).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(latest).mappings().all())
        return [Entry(**{**row, "detail": json.loads(row["detail"])}) for row in rows]


def writing(
    *, actor: str, action: str, target: str, tenant: str, detail: Mapping[str, Any] | None, at: float
) -> Executable:
    """What `AuditLog.append` executes, for a transaction that does more; it raises what that raises."""
    if not actor or not action:
        raise UsageError("an audit entry needs an actor and an action")
    try:
        words = json.dumps(dict(detail or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the detail of an audit entry has to be JSON: {error}") from error
    values = {"tenant": tenant, "at": at, "actor": actor, "action": action, "target": target, "detail": words}
    return audit.insert().values(values).returning(audit.c.id)
