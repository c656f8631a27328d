"""Events, and the outbox: which of them no broker has yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, select, text

from saqkit.app.audience import Audience
from saqkit.app.database import Database
from saqkit.app.store.part import Part, now
from saqkit.app.store.remembered import Remembered
from saqkit.app.store.tenants import require_institution
from saqkit.app.tables import events, outbox
from saqkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Announcement:
    """What `announce` made; `new` is False if the idempotency key was known, and `event_id` is then the first event."""

    event_id: int
    new: bool


@dataclass(frozen=True, slots=True)
class EventRow:
    """A stored event; `created_at` in seconds since the epoch."""

    id: int
    key: str | None
    topic: str
    title: str
    body: str
    audience: Audience
    tenant: str
    created_at: float


class Events(Part):
    """Events and their outbox rows. An event is never changed, so a process remembers those that it has seen lately."""

    def __init__(self, database: Database, replica: Database | None = None) -> None:
        super().__init__(database, replica)
        self._seen: Remembered[int, EventRow] = Remembered()

    async def announce(
        self,
        *,
        title: str,
        topic: str,
        audience: Audience,
        created_at: float,
        body: str = "",
        tenant: str = "",
        key: str | None = None,
    ) -> Announcement:
        """Store an event and its outbox row in one transaction; takes the same time for any audience.

        A `key` that `tenant` has used before returns the first event with it. An event of a tenant reaches that
        tenant's people only (except `first_n`, which counts people of all tenants). `UsageError`, and nothing is
        stored, if the audience is of an institution that its tenant does not have.
        """
        if "\n" in title or "\r" in title:
            raise UsageError("the title has a line break; it becomes the subject of an email: one line")
        if tenant and audience.first_n is None:
            if audience.tenant not in ("", tenant):
                raise UsageError(f'an event of tenant "{tenant}" cannot reach people of tenant "{audience.tenant}"')
            audience = replace(audience, tenant=tenant)
        values = {
            "key": key,
            "topic": topic,
            "title": title,
            "body": body,
            "audience": audience.to_json(),
            "tenant": tenant,
            "created_at": created_at,
        }

        def store(connection: Connection) -> Announcement:
            if audience.institution:
                require_institution(connection, audience.tenant, audience.institution)
            event_id = save_event(connection, values)
            if event_id is None:
                known = select(events.c.id).where(events.c.tenant == tenant, events.c.key == key)
                return Announcement(connection.execute(known).scalar_one(), new=False)
            return Announcement(event_id, new=True)

        made = await self._database.write(store)
        if made.new:  # whoever announces delivers at once, and then need not read it
            row = EventRow(made.event_id, key, topic, title, body, audience, tenant, created_at)
            self._seen.keep(row.id, row)
        return made

    async def add_events(self, rows: Sequence[EventRow]) -> None:
        """Store events of a measured run, under the ids that they have, with their outbox rows, in one transaction."""
        values = [asdict(row) | {"audience": row.audience.to_json()} for row in rows]
        waiting = [{"event": row.id, "created_at": row.created_at} for row in rows]

        def store(connection: Connection) -> None:
            connection.execute(events.insert(), values)
            connection.execute(_INSERT_OUTBOX, waiting)

        await self._database.write(store)

    async def event(self, event_id: int) -> EventRow | None:
        """The event; read from the database at most once a minute."""
        if (seen := self._seen.get(event_id)) is not None:
            return seen
        known = select(events).where(events.c.id == event_id)
        found = await self._database.read(lambda connection: connection.execute(known).mappings().one_or_none())
        if found is None:
            return None
        row = EventRow(**{**found, "audience": Audience.from_json(found["audience"])})
        self._seen.keep(event_id, row)
        return row

    async def undelivered(self, limit: int = 100) -> list[int]:
        """Events that no broker has yet, oldest first."""
        waiting = select(outbox.c.event_id).where(outbox.c.delivered_at.is_(None))
        oldest = waiting.order_by(outbox.c.event_id).limit(limit)
        return await self._database.read(lambda connection: list(connection.execute(oldest).scalars()))

    async def topics(self) -> dict[str, tuple[int, int]]:
        """By topic: how many events were announced, and how many of them no broker has yet."""
        late = func.count(outbox.c.event_id).filter(outbox.c.delivered_at.is_(None))
        joined = events.outerjoin(outbox, outbox.c.event_id == events.c.id)
        counted = select(events.c.topic, func.count(), late).select_from(joined).group_by(events.c.topic)
        rows = await self._database.read(lambda connection: connection.execute(counted).all())
        return {topic: (announced, undelivered) for topic, announced, undelivered in rows}

    async def mark_delivered(self, event_ids: Sequence[int], *, at: float | None = None) -> None:
        """The broker has these events since `at` (default: now)."""
        waiting = outbox.update().where(outbox.c.event_id.in_(event_ids), outbox.c.delivered_at.is_(None))
        delivered = waiting.values(delivered_at=now(at))
        await self._database.write(lambda connection: connection.execute(delivered))

    async def delivered_since(self, at: float) -> list[int]:
        """Events that the broker took at `at` or later, oldest first."""
        recent = select(outbox.c.event_id).where(outbox.c.delivered_at >= at).order_by(outbox.c.event_id)
        return await self._database.read(lambda connection: list(connection.execute(recent).scalars()))


def save_event(connection: Connection, values: Mapping[str, Any]) -> int | None:
    """Store an event (a value for each column but its id) and its outbox row in a transaction of the caller's.

    Returns its id; None if its tenant has used its key before, and then nothing is stored.
    """
    event_id: int | None = connection.execute(_INSERT_EVENT, values).scalar()
    if event_id is not None:
        connection.execute(_INSERT_OUTBOX, {"event": event_id, "created_at": values["created_at"]})
    return event_id


_INSERT_EVENT = text(
    "INSERT INTO events (key, topic, title, body, audience, tenant, created_at)"
    " VALUES (:key, :topic, :title, :body, :audience, :tenant, :created_at)"
    " ON CONFLICT (tenant, key) DO NOTHING RETURNING id"
)
_INSERT_OUTBOX = text("INSERT INTO outbox (event_id, created_at) VALUES (:event, :created_at)")
