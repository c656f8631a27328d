"""Who was at school, by tenant, institution and day."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any, Literal

from sqlalchemy import Connection, TextClause, select, text

from saqkit.app.database import Dialect
from saqkit.app.store.part import Part, now
from saqkit.app.tables import attendance, institutions
from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

Status = Literal["present", "absent", "late", "excused"]
STATUSES = ("present", "absent", "late", "excused")


@dataclass(frozen=True, slots=True)
class Marked:
    """What a marking changed: pupils who had no mark that day, and pupils who had another one."""

    new: int
    corrected: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Whom a marking changed something of, by user id: those who had no mark that day, and those who had another."""

    new: tuple[int, ...]
    corrected: tuple[int, ...]

    @property
    def counted(self) -> Marked:
        return Marked(len(self.new), len(self.corrected))


@dataclass(frozen=True, slots=True)
class PupilDays:
    """How often a pupil was marked as what, in the days of a report; `name` is empty if the person is gone."""

    user: int
    name: str
    present: int
    absent: int
    late: int
    excused: int


class Attendance(Part):
    """Marks of all tenants; nothing of a tenant is read or changed without its name."""

    async def mark(
        self,
        tenant: str,
        institution: str,
        day: date,
        marks: Mapping[int, Status],
        *,
        by: str = "",
        at: float | None = None,
    ) -> Marked:
        """Store `marks` (status by user id) of one day in one transaction; doing it again changes nothing.

        Raises `UsageError`, and stores nothing, for a status that there is not, an institution that the tenant does not
        have, or a pupil who is not of the tenant.
        """
        put = marking(self._database.dialect, tenant, institution, day, marks, by=by, at=now(at))
        return (await self._database.write(put)).counted

    async def check(self, tenant: str, institution: str, pupils: Collection[int] = ()) -> None:
        """Raise `UsageError` if the tenant does not have the institution, or a pupil is not of the tenant."""
        rows = json.dumps([[user, ""] for user in sorted(pupils)])

        def look(connection: Connection) -> None:
            _check(connection, self._database.dialect, tenant, institution, rows)

        await self._database.read(look)

    async def of_day(self, tenant: str, institution: str, day: date) -> dict[int, str]:
        """Status by user id, in order of user id."""
        ours = (attendance.c.tenant == tenant, attendance.c.institution == institution)
        that_day = select(attendance.c.user_id, attendance.c.status).where(*ours, attendance.c.day == day.isoformat())
        ordered = that_day.order_by(attendance.c.user_id)
        rows = await self._database.read(lambda connection: connection.execute(ordered).all())
        return {user: status for user, status in rows}  # noqa: C416 (dict() of rows has no type)

    async def report(self, tenant: str, institution: str, first: date, last: date) -> list[PupilDays]:
        """Every pupil who was marked from `first` to `last`, both included, in order of user id."""
        values: dict[str, Any] = {"tenant": tenant, "institution": institution}
        values |= {"first": first.isoformat(), "last": last.isoformat()}
        rows = await self._database.read(lambda connection: connection.execute(_REPORT, values).all())
        return [PupilDays(*row) for row in rows]


def marking(
    dialect: Dialect,
    tenant: str,
    institution: str,
    day: date,
    marks: Mapping[int, Status],
    *,
    by: str,
    at: float,
) -> Callable[[Connection], Changes]:
    """What `Attendance.mark` does in a transaction, for one that does more."""
    for user, status in marks.items():
        if status not in STATUSES:
            raise UsageError(f'"{status}" (user {user}) is no mark: {did_you_mean(status, STATUSES)}')
    rows = json.dumps([[user, status] for user, status in sorted(marks.items())])
    place = {"tenant": tenant, "institution": institution, "day": day.isoformat(), "rows": rows}
    _, before, put = _statements(dialect)

    def store(connection: Connection) -> Changes:
        # Two who mark one institution take turns, so that each mark is new only once.
        _check(connection, dialect, tenant, institution, rows, held=True)
        known = {user: status for user, status in connection.execute(before, place)}  # noqa: C416 (as above)
        connection.execute(put, {**place, "by": by, "at": at})
        corrected = (user for user, status in known.items() if status != marks[user])
        return Changes(tuple(sorted(marks.keys() - known.keys())), tuple(sorted(corrected)))

    return store


def _check(
    connection: Connection, dialect: Dialect, tenant: str, institution: str, rows: str, *, held: bool = False
) -> None:
    ours = (institutions.c.tenant == tenant, institutions.c.name == institution)
    found = select(institutions.c.name).where(*ours)
    if connection.execute(found.with_for_update(key_share=True) if held else found).scalar() is None:
        raise UsageError(f'tenant "{tenant}" has no institution "{institution}"')
    stranger = connection.execute(_statements(dialect)[0], {"tenant": tenant, "rows": rows}).scalar()
    if stranger is not None:
        raise UsageError(f'user {stranger} is not of tenant "{tenant}"')


@cache
def _statements(dialect: Dialect) -> tuple[TextClause, TextClause, TextClause]:
    """Who is not of the tenant; who is marked, and how; mark them. The rows are one parameter."""
    rows = {
        "sqlite": "json_each(CAST(:rows AS TEXT))",
        "postgresql": "jsonb_array_elements(CAST(:rows AS jsonb)) AS t(value)",
    }[dialect]
    marks = f"(SELECT CAST(value ->> 0 AS INTEGER) AS user_id, value ->> 1 AS status FROM {rows})"
    of_day = "a.tenant = :tenant AND a.institution = :institution AND a.day = :day AND a.user_id = m.user_id"
    return (
        text(
            f"SELECT min(m.user_id) FROM {marks} AS m"
            " WHERE NOT EXISTS (SELECT 1 FROM users AS u WHERE u.id = m.user_id AND u.tenant = :tenant)"
        ),
        text(f"SELECT a.user_id, a.status FROM {marks} AS m JOIN attendance AS a ON {of_day}"),
        text(
            "INSERT INTO attendance (tenant, institution, day, user_id, status, marked_by, marked_at)"
            " SELECT CAST(:tenant AS TEXT), CAST(:institution AS TEXT), CAST(:day AS TEXT), m.user_id, m.status,"
            f" CAST(:by AS TEXT), CAST(:at AS DOUBLE PRECISION) FROM {marks} AS m WHERE TRUE"
            " ON CONFLICT (tenant, institution, day, user_id) DO UPDATE SET status = excluded.status,"
            " marked_by = excluded.marked_by, marked_at = excluded.marked_at"
            " WHERE attendance.status <> excluded.status"
        ),
    )


_COUNTS = ", ".join(f"count(*) FILTER (WHERE a.status = '{status}')" for status in STATUSES)
_REPORT = text(
    f"SELECT a.user_id, coalesce(u.name, ''), {_COUNTS} FROM attendance AS a LEFT JOIN users AS u ON u.id = a.user_id"
    " WHERE a.tenant = :tenant AND a.institution = :institution AND a.day BETWEEN :first AND :last"
    " GROUP BY a.user_id, u.name ORDER BY a.user_id"
)
