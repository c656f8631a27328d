"""Places in courses: pending from checkout on, completed once."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, delete, exists, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from saqkit.app.audience import Audience
from saqkit.app.database import Database
from saqkit.app.store import Announcement, EventRow
from saqkit.app.tables import courses, enrolments, events, orders, outbox, users
from saqkit.errors import UsageError

DUE_S = 86_400.0
"""Who has a lesson within a day of a reminder's event is reminded."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A place; `course` is None in measured runs, `order` where nothing was paid, `event` where the `origin` is not
    "here" but another system. Times in seconds since the epoch."""

    user: int
    course: int | None
    event: int | None
    order: int | None
    origin: Literal["here", "source"]
    state: Literal["pending", "completed"]
    completed_at: float | None


class Enrolments:
    """The places of a database; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enrol(self, user: int, course: int, *, topic: str, title: str, body: str = "") -> Announcement:
        """Keep a place that costs nothing, with the event that completes it and its outbox row.

        Doing it again returns the first event. `UsageError` for no such user or course, or a place that is paid for.
        """
        at, key = time.time(), f"enrolment {user} {course}"

        def write(connection: Connection) -> Announcement:
            tenant = _tenant_of(connection, user)
            audience = Audience(users=(user,), tenant=tenant).to_json()
            values = {"key": key, "topic": topic, "title": title, "body": body, "audience": audience, "tenant": tenant,
                      "created_at": at}  # fmt: skip
            save = _insert(connection)(events).values(values).on_conflict_do_nothing(index_elements=["tenant", "key"])
            event = connection.execute(save.returning(events.c.id)).scalar()
            if event is None:
                known = select(events.c.id).where(events.c.tenant == tenant, events.c.key == key)
                return Announcement(connection.execute(known).scalar_one(), new=False)
            connection.execute(insert(outbox).values(event_id=event, created_at=at))
            reserve(connection, user, course, event, None, at)
            return Announcement(event, new=True)

        return await self._database.write(write)

    async def complete(self, event: EventRow, whose: Collection[int], at: float) -> list[int]:
        """Complete the places of an event's users whose orders, if they have any, are paid.

        Returns who has one now, in order of id: also those who had one before, so that it can be done again.
        """

        def write(connection: Connection) -> list[int]:
            if event.audience.first_n is not None and whose:
                rows = [_row(user, None, event.id, None, at) for user in sorted(whose)]
                connection.execute(_insert(connection)(enrolments).on_conflict_do_nothing(), rows)
            ours = (enrolments.c.event_id == event.id, enrolments.c.user_id.in_(list(whose)))
            free, paid = enrolments.c.order_id.is_(None), exists().where(
                orders.c.id == enrolments.c.order_id, orders.c.state == "paid"
            )  # fmt: skip
            now = update(enrolments).where(*ours, enrolments.c.state == "pending", or_(free, paid))
            connection.execute(now.values(state="completed", completed_at=at))
            have = select(enrolments.c.user_id).where(*ours, enrolments.c.state == "completed")
            return list(connection.execute(have.order_by(enrolments.c.user_id)).scalars())

        return await self._database.write(write)

    async def of_event(self, event: int, whose: Sequence[int]) -> list[Enrolment]:
        """The places of an event's users."""
        return await self._list(enrolments.c.event_id == event, enrolments.c.user_id.in_(list(whose)))

    async def of_user(self, user: int) -> list[Enrolment]:
        """All places of a user, oldest first."""
        return await self._list(enrolments.c.user_id == user)

    async def _list(self, *which: ColumnElement[bool]) -> list[Enrolment]:
        one = enrolments.c
        columns = (one.user_id, one.course_id, one.event_id, one.order_id, one.origin, one.state, one.completed_at)
        wanted = select(*columns).where(*which).order_by(one.id)
        rows = await self._database.read(lambda connection: connection.execute(wanted).all())
        return [Enrolment(*row) for row in rows]


def reserve(connection: Connection, user: int, course: int, event: int, order: int | None, at: float) -> None:
    """Keep a user's place until `event` completes it. `UsageError` if there is no such course where the user is, or if
    they have a place there, or are paying for one; one whose payment was declined makes room."""
    known = select(courses.c.id).where(courses.c.id == course, courses.c.tenant == _tenant_of(connection, user))
    if connection.execute(known).scalar() is None:
        raise UsageError(f"there is no course {course} for user {user}")
    mine = (enrolments.c.user_id == user, enrolments.c.course_id == course)
    lost = exists().where(orders.c.id == enrolments.c.order_id, orders.c.state == "declined")
    connection.execute(delete(enrolments).where(*mine, enrolments.c.state == "pending", lost))
    keep = _insert(connection)(enrolments).values(_row(user, course, event, order, at)).on_conflict_do_nothing()
    if not connection.execute(keep).rowcount:
        state = connection.execute(select(enrolments.c.state).where(*mine)).scalar()
        says = "is enrolled" if state == "completed" else "is about to be enrolled"
        raise UsageError(f"user {user} {says} in course {course} already")


def course_of_order(connection: Connection, order: int) -> int | None:
    """Which course an order is for, if it is for one."""
    return connection.execute(select(enrolments.c.course_id).where(enrolments.c.order_id == order)).scalar()


def due(event: EventRow) -> ColumnElement[bool]:
    """The condition for users who are to be reminded by an event: a lesson of one of their courses is near."""
    soon = courses.c.next_lesson_at.between(event.created_at, event.created_at + DUE_S)
    theirs = (enrolments.c.user_id == users.c.id, enrolments.c.state == "completed")
    return exists().where(*theirs, courses.c.id == enrolments.c.course_id, soon)


def _tenant_of(connection: Connection, user: int) -> str:
    tenant: str | None = connection.execute(select(users.c.tenant).where(users.c.id == user, users.c.active)).scalar()
    if tenant is None:
        raise UsageError(f"there is no active user {user}: nobody can be enrolled")
    return tenant


def _row(user: int, course: int | None, event: int, order: int | None, at: float) -> dict[str, Any]:
    return {"user_id": user, "course_id": course, "event_id": event, "order_id": order, "origin": "here",
            "state": "pending", "created_at": at, "completed_at": None}  # fmt: skip


def _insert(connection: Connection) -> Any:
    return sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
