"""What is kept of another system: courses page by page with their cursor, profiles, and places that it tells of."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from saqkit.app.courses.source import CourseRow
from saqkit.app.database import Database
from saqkit.app.tables import courses, enrolments, profiles, sync_cursors, users
from saqkit.errors import TemporaryFailure


class Synchronised:
    """The copies in a database. Every method is one transaction, and doing it again changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = sqlite.insert if database.dialect == "sqlite" else postgresql.insert

    async def begin(self, tenant: str, kind: str, event: int) -> str | None:
        """The cursor from which a pass goes on: where the last one stopped ("": the beginning); None if the pass of
        this event has reached the end."""
        new = self._insert(sync_cursors).values(tenant=tenant, kind=kind, cursor="", finished_event=0)
        place = (sync_cursors.c.tenant == tenant, sync_cursors.c.kind == kind)
        known = select(sync_cursors.c.cursor, sync_cursors.c.finished_event).where(*place)

        def write(connection: Connection) -> str | None:
            connection.execute(new.on_conflict_do_nothing())
            cursor, finished = connection.execute(known).one()
            return None if finished == event else cursor

        return await self._database.write(write)

    async def store_courses(
        self, tenant: str, event: int, after: str, rows: Sequence[CourseRow], following: str | None, at: float
    ) -> None:
        """Store a page of courses together with the cursor behind it; `following`: None at the end of a pass.

        `TemporaryFailure`, and nothing is stored, if another pass has moved the cursor meanwhile.
        """
        place = (sync_cursors.c.tenant == tenant, sync_cursors.c.kind == "courses", sync_cursors.c.cursor == after)
        moved = {"cursor": following or ""} | ({"finished_event": event} if following is None else {})
        newest = {row.source_id: row for row in rows}  # a source that moves while it is read may tell of one twice
        values = [{"tenant": tenant, "source_id": row.source_id, "title": row.title,
                   "next_lesson_at": row.next_lesson_at, "changed_at": at}
                  for row in sorted(newest.values(), key=lambda row: row.source_id)]  # fmt: skip
        put = self._insert(courses)
        new = put.excluded
        put = put.on_conflict_do_update(
            index_elements=["tenant", "source_id"],
            set_={"title": new.title, "next_lesson_at": new.next_lesson_at, "changed_at": new.changed_at},
            where=or_(
                courses.c.title != new.title, courses.c.next_lesson_at.is_distinct_from(new.next_lesson_at)
            ),
        )  # fmt: skip

        def write(connection: Connection) -> None:
            if not connection.execute(update(sync_cursors).where(*place).values(moved)).rowcount:
                raise TemporaryFailure("courses are being synchronised by another job just now")
            if values:
                connection.execute(put, values)

        await self._database.write(write)

    async def store_profile(self, user: int, profile: Mapping[str, Any] | None, at: float) -> None:
        """Keep what the source says of a user; None: it says nothing any more."""
        which = profiles.c.user_id == user
        if profile is None:
            await self._database.write(lambda connection: connection.execute(delete(profiles).where(which)))
            return
        fresh = {"data": json.dumps(profile, sort_keys=True), "changed_at": at}
        put = self._insert(profiles).values(user_id=user, **fresh)
        changed = put.on_conflict_do_update(
            index_elements=["user_id"], set_=fresh, where=profiles.c.data != put.excluded.data
        )
        await self._database.write(lambda connection: connection.execute(changed))

    async def profile(self, user: int) -> dict[str, Any] | None:
        """What the source has said of a user."""
        known = select(profiles.c.data).where(profiles.c.user_id == user)
        found = await self._database.read(lambda connection: connection.execute(known).scalar())
        return None if found is None else json.loads(found)

    async def store_enrolments(self, user: int, there: Collection[str], at: float) -> list[str]:
        """Let a user have a place in every course of `there` (the source's ids), and those that the source alone told
        of in no other. Places that came about here stay as they are. Returns the ids of courses not known here."""
        theirs = select(users.c.tenant).where(users.c.id == user).scalar_subquery()
        known = select(courses.c.source_id, courses.c.id).where(
            courses.c.tenant == theirs, courses.c.source_id.in_(sorted(set(there)))
        )  # fmt: skip

        def write(connection: Connection) -> list[str]:
            found = {row[0]: row[1] for row in connection.execute(known)}
            rows = [{"user_id": user, "course_id": course, "event_id": None, "order_id": None, "origin": "source",
                     "state": "completed", "created_at": at, "completed_at": at}
                    for course in sorted(found.values())]  # fmt: skip
            gone = delete(enrolments).where(enrolments.c.user_id == user, enrolments.c.origin == "source")
            connection.execute(gone.where(enrolments.c.course_id.not_in(sorted(found.values()))))
            if rows:
                connection.execute(self._insert(enrolments).on_conflict_do_nothing(), rows)
            return sorted(set(there) - set(found))

        return await self._database.write(write)

    async def courses(self, tenant: str = "") -> dict[str, tuple[int, str, float | None]]:
        """A tenant's courses by the source's id: our id, title, next lesson."""
        wanted = select(courses).where(courses.c.tenant == tenant).order_by(courses.c.id)
        rows = await self._database.read(lambda connection: connection.execute(wanted).mappings().all())
        return {row["source_id"]: (row["id"], row["title"], row["next_lesson_at"]) for row in rows}
