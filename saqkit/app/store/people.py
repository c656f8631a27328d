"""Users, and the pages of those whom an event is for."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, false, func, select, text

from saqkit.app.audience import Audience
from saqkit.app.store.ledger_rows import Recipient
from saqkit.app.store.part import Part
from saqkit.app.store.tenants import know_institutions, know_tenants
from saqkit.app.tables import users
from saqkit.errors import StoreError, UsageError

logger = logging.getLogger("saqkit")
TENANTS = ("harbour", "north", "south")
# A transaction of this many users holds SQLite's only writer for some 50 ms.
_ROWS_PER_TRANSACTION = 5_000
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class UserRow:
    """A person to be stored; `email` is unique inside `tenant`.

    `institution`: the one of the tenant's to which the person belongs, "" for none; None: as it is, at first none.
    """

    email: str
    name: str = ""
    role: str = "student"
    tenant: str = ""
    institution: str | None = None

    def __post_init__(self) -> None:
        if self.institution and not self.tenant:
            raise UsageError(f'{self.email}: institution "{self.institution}" is one of a tenant: name the tenant too')


class People(Part):
    """The users of all tenants."""

    async def add_users(self, rows: Iterable[UserRow]) -> int:
        """Store people; whoever is known by tenant and email gets the new name, role and institution.

        Returns how many were new. Their tenants and institutions are known from then on.
        """
        added, remaining = 0, iter(rows)
        while chunk := [asdict(row) for row in islice(remaining, _ROWS_PER_TRANSACTION)]:
            added += await self._database.write(partial(_add_users, chunk))
        return added

    async def add_numbered_users(self, count: int) -> int:
        """Made-up people 1..`count` for measured runs: 60 % students, 30 % parents, 10 % teachers in three tenants.

        Adds only the ids that are missing and returns how many those were.
        """

        def add(connection: Connection) -> int:
            know_tenants(connection, TENANTS, time.time())
            added = connection.execute(_INSERT_NUMBERED, {"count": count}).rowcount
            if self._database.dialect == "postgresql":
                connection.execute(_CONTINUE_IDS)
            return added

        return await self._database.write(add)

    async def remove_users(self, user_ids: Iterable[int]) -> int:
        """Delete people; their ledger rows stay. Returns how many there were."""
        gone = users.delete().where(users.c.id.in_(list(user_ids)))
        return await self._database.write(lambda connection: connection.execute(gone).rowcount)

    async def recipient(self, user_id: int, tenant: str = "") -> Recipient | None:
        """The active user of that id, None if there is none (of `tenant`, if one is given)."""
        one = select(users.c.id, users.c.email, users.c.name).where(users.c.id == user_id, users.c.active)
        if tenant:
            one = one.where(users.c.tenant == tenant)
        row = await self._database.read(lambda connection: connection.execute(one).one_or_none())
        return Recipient(*row) if row else None

    async def count_users(self, audience: Audience | None = None) -> int:
        """How many active users `audience` has now (default: everybody)."""
        count = _count(*_members(audience or Audience()))
        return await self._database.read(lambda connection: connection.execute(count).scalar_one())

    async def audience_page(self, audience: Audience, after: int, limit: int, *only: ColumnElement[bool]) -> list[int]:
        """Ids of the next `limit` active users of the audience, all greater than `after`, in order.

        With conditions in `only`, those of them for whom they hold.

        Read from the replica, if there is one; from the main database while that is away.
        """
        members = select(users.c.id).where(users.c.id > after, *_members(audience), *only)
        page = members.order_by(users.c.id).limit(limit)
        if self._as_json:
            as_one = select(func.json_group_array(page.subquery().c.id))
            return await self._database.read(lambda connection: json.loads(connection.execute(as_one).scalar_one()))
        return await self._read_replica(lambda connection: list(connection.execute(page).scalars()))

    async def _read_replica(self, function: Callable[[Connection], Result]) -> Result:
        if self._replica is not None:
            try:
                return await self._replica.read(function)
            except StoreError as error:
                logger.warning("the audience is read from the main database, not from the replica: %s", error)
        return await self._database.read(function)


# One text serves both databases. CAST gives PostgreSQL the type of a bare parameter.
_UPSERT_USER = text(
    "INSERT INTO users (email, name, role, tenant, active, institution)"
    " VALUES (:email, :name, :role, :tenant, TRUE, coalesce(CAST(:institution AS TEXT), ''))"
    " ON CONFLICT (tenant, email) DO UPDATE SET name = excluded.name, role = excluded.role, active = TRUE,"
    " institution = coalesce(CAST(:institution AS TEXT), users.institution)"
)
_INSERT_NUMBERED = text(
    "INSERT INTO users (id, email, name, role, tenant, active)"
    " WITH RECURSIVE numbers(i) AS (SELECT 1 WHERE CAST(:count AS INTEGER) > 0"
    " UNION ALL SELECT i + 1 FROM numbers WHERE i < CAST(:count AS INTEGER))"
    " SELECT i, 'user' || i || '@users.example', 'User ' || i,"
    " CASE WHEN i % 10 < 6 THEN 'student' WHEN i % 10 < 9 THEN 'parent' ELSE 'teacher' END,"
    f" CASE i % 3 WHEN 0 THEN '{TENANTS[0]}' WHEN 1 THEN '{TENANTS[1]}' ELSE '{TENANTS[2]}' END, TRUE"
    " FROM numbers WHERE TRUE ON CONFLICT DO NOTHING"
)
_CONTINUE_IDS = text("SELECT setval(pg_get_serial_sequence('users', 'id'), (SELECT max(id) FROM users))")


def _add_users(rows: list[dict[str, str | None]], connection: Connection) -> int:
    if connection.dialect.name == "postgresql":  # else another import would be counted as ours
        connection.execute(text("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE"))
    at = time.time()
    know_tenants(connection, {str(row["tenant"]) for row in rows} - {""}, at)
    places = {(str(row["tenant"]), name) for row in rows if (name := row["institution"])}
    know_institutions(connection, places, at)
    last: int = connection.execute(select(func.coalesce(func.max(users.c.id), 0))).scalar_one()
    connection.execute(_UPSERT_USER, rows)
    added: int = connection.execute(_count(users.c.id > last)).scalar_one()
    return added


def _members(audience: Audience) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [users.c.active]
    if audience.roles:
        conditions.append(users.c.role.in_(audience.roles))
    if audience.tenant:
        conditions.append(users.c.tenant == audience.tenant)
    if audience.institution:  # the words of the index, so that it can be used
        conditions.append(users.c.institution == audience.institution)
        conditions.append(text("institution <> ''"))  # type: ignore[arg-type]  # text is a condition too, untyped as one
    if audience.first_n is not None:
        conditions.append(users.c.id <= audience.first_n)
    if audience.users:
        conditions.append(users.c.id.in_(audience.users))
    if audience.nobody:
        conditions.append(false())
    return conditions


def _count(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(func.count()).select_from(users).where(*conditions)
