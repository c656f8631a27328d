"""What has been done for a school, each once: its key, what it changed and its audit entry are one transaction.

So a job whose worker dies before that is committed does it all the next time, and one that dies after it does nothing
more: not even where somebody has corrected a mark in between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, text

from saqkit.app.database import Dialect
from saqkit.app.store.audit_log import writing
from saqkit.app.store.part import Part, now
from saqkit.app.tables import institutions, school_operations, school_records
from saqkit.errors import UsageError

__all__ = ["Apply", "Done", "Operations", "Record"]

Apply = Callable[[Connection], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Done:
    """An operation, and what came of it; `new` is False if it had been done before."""

    key: str
    institution: str
    kind: str
    result: dict[str, Any]
    new: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """An academic record; `user` is 0 where it is of nobody."""

    kind: str
    name: str
    user: int
    data: dict[str, Any]


class Operations(Part):
    """The operations and records of all tenants; nothing of a tenant is read or changed without its name."""

    @property
    def dialect(self) -> Dialect:
        """The kind of database."""
        return self._database.dialect

    async def once(
        self,
        tenant: str,
        institution: str,
        key: str,
        kind: str,
        arguments: Mapping[str, Any],
        apply: Apply,
        *,
        actor: str = "",
        at: float | None = None,
    ) -> Done:
        """Do `apply` in a transaction, unless the tenant has done `key` before; an audit entry is made of `actor`.

        `UsageError`, and nothing changes, if that was another operation, if the tenant does not have the institution,
        or where `apply` raises it.
        """
        digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
        moment = now(at)
        values = {"tenant": tenant, "institution": institution, "key": key, "kind": kind, "digest": digest,
                  "at": moment}  # fmt: skip
        ours = select(institutions.c.name).filter_by(tenant=tenant, name=institution)
        same = school_operations.select().filter_by(tenant=tenant, key=key)
        ends = school_operations.update().filter_by(tenant=tenant, key=key)

        def write(connection: Connection) -> Done:
            if connection.execute(ours).scalar() is None:
                raise UsageError(f'tenant "{tenant}" has no institution "{institution}"')
            if not connection.execute(_BEGIN, values).rowcount:
                known = connection.execute(same).mappings().one()
                if (known["kind"], known["institution"], known["digest"]) != (kind, institution, digest):
                    raise UsageError(f'the key "{key}" is that of another operation, {known["kind"]} (use a new key)')
                return Done(key, institution, kind, json.loads(known["result"]))
            result = dict(apply(connection))
            connection.execute(ends.values(result=json.dumps(result)))
            if actor:
                detail = {"key": key, **result}
                connection.execute(writing(actor=actor, action=kind, target=institution, tenant=tenant, detail=detail,
                                           at=moment))  # fmt: skip
            return Done(key, institution, kind, result, new=True)

        return await self._database.write(write)

    async def done(self, tenant: str, key: str) -> Done | None:
        """The operation of a tenant's job, None if it is not done."""
        one = school_operations.select().filter_by(tenant=tenant, key=key)
        row = await self._database.read(lambda connection: connection.execute(one).mappings().one_or_none())
        return Done(key, row["institution"], row["kind"], json.loads(row["result"])) if row else None

    async def records(self, tenant: str, institution: str, kind: str) -> list[Record]:
        """The academic records of a kind, in order of name and user."""
        ours = school_records.select().filter_by(tenant=tenant, institution=institution, kind=kind)
        ordered = ours.order_by(school_records.c.name, school_records.c.user_id)
        rows = await self._database.read(lambda connection: connection.execute(ordered).mappings().all())
        return [Record(kind, row["name"], row["user_id"], json.loads(row["data"])) for row in rows]


_BEGIN = text(
    "INSERT INTO school_operations (tenant, key, institution, kind, digest, result, done_at)"
    " VALUES (:tenant, :key, :institution, :kind, :digest, '{}', :at) ON CONFLICT (tenant, key) DO NOTHING"
)
