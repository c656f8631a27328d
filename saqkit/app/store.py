"""Users, events, outbox, fan-out cursors and the ledger: every statement that the reference application runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from sqlalchemy import ColumnElement, Connection, Select, TextClause, false, func, select, text

from saqkit.app.audience import Audience
from saqkit.app.database import Database
from saqkit.app.tables import events, outbox, users
from saqkit.errors import UsageError

TENANTS = ("harbour", "north", "south")
GONE = "the user was deleted or deactivated before the message was sent"
# A transaction of this many users holds SQLite's only writer for some 50 ms.
_ROWS_PER_TRANSACTION = 5_000
_ERROR_LENGTH = 500


@dataclass(frozen=True, slots=True)
class UserRow:
    """A person to be stored; `email` is unique inside `tenant`."""

    email: str
    name: str = ""
    role: str = "student"
    tenant: str = ""


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


@dataclass(frozen=True, slots=True)
class Recipient:
    """Somebody who is still to be served."""

    user: int
    email: str
    name: str


class Batch(NamedTuple):
    """Whom a batch has still to serve, and how many of its users were found to be gone just now."""

    pending: list[Recipient]
    gone: int


@dataclass(frozen=True, slots=True)
class SendResult:
    """How one send ended for good; `sent_at` in seconds since the epoch."""

    event: int
    user: int
    channel: str
    status: Literal["sent", "failed"]
    message_id: str = ""
    error: str = ""
    sent_at: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A user who was not served, and why; `email` is empty if the person is gone."""

    user: int
    channel: str
    email: str
    error: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an event is. `users` is what the fan-out has found so far, `pending` counts those not yet begun too.

    `percent` = (sent + failed) / users. With several channels `users` grows as each channel begins.
    """

    users: int
    pending: int
    sent: int
    failed: int
    percent: float
    fan_out_finished: bool


class Store:
    """The database of the reference application. Every method is one transaction, or one per 5,000 users; `StoreError`
    if the database is gone, full, or locked by somebody for too long. Times are seconds since the epoch.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        if database.dialect == "sqlite":
            ids = "SELECT DISTINCT value AS id FROM json_each(:users)"
            among = "IN (SELECT value FROM json_each(:users))"
        else:
            ids = "SELECT DISTINCT unnest(CAST(:users AS integer[])) AS id"
            among = "= ANY (CAST(:users AS integer[]))"
        # The bounds are for PostgreSQL, which else reads all rows of a fresh event for each of its batches.
        among = f"user_id BETWEEN :first AND :last AND user_id {among}"
        self._insert_pending = _ledger_insert(ids, "pending", "DO NOTHING")
        self._insert_failed = _ledger_insert(
            ids,
            "failed",
            "(event_id, user_id, channel) DO UPDATE SET status = 'failed', error = excluded.error,"
            " sent_at = excluded.sent_at WHERE notifications.status = 'pending'",
        )
        pending = (
            "SELECT user_id, email, name FROM notifications LEFT JOIN users ON users.id = user_id AND active"
            f" WHERE event_id = :event AND channel = :channel AND status = 'pending' AND {among} ORDER BY user_id"
        )
        # Each row that SQLite's driver fetches or writes costs its thread a turn at the interpreter. Behind a busy loop
        # that is up to 5 ms, while others wait for the writer. So all rows come and go as one JSON value.
        self._as_json = database.dialect == "sqlite"
        if self._as_json:
            pending = f"SELECT json_group_array(json_array(user_id, email, name)) FROM ({pending})"
        self._select_pending = text(pending)
        self._reopen = text(
            "UPDATE notifications SET status = 'pending', error = '', sent_at = NULL WHERE event_id = :event"
            f" AND channel = :channel AND status = 'failed' AND {among}"
        )
        self._ended = text(
            "SELECT status, sent_at FROM notifications WHERE event_id = :event AND channel = :channel"
            f" AND status <> 'pending' AND {among}"
        )

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 5) -> Self:
        """Open `sqlite:///FILE` or `postgresql://…` and bring its tables up to date.

        `pool_size`: connections kept per process, and never more. Raises `StoreError`, one line: not reachable, folder
        missing, not a database, made by a newer saqkit, driver not installed.
        """
        return cls(await Database.open(url, pool_size=pool_size))

    async def close(self) -> None:
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- users

    async def add_users(self, rows: Iterable[UserRow]) -> int:
        """Store people; whoever is known by tenant and email gets the new name and role. Returns how many were new."""
        added, remaining = 0, iter(rows)
        while chunk := [asdict(row) for row in islice(remaining, _ROWS_PER_TRANSACTION)]:
            added += await self._database.write(partial(_add_users, chunk))
        return added

    async def add_numbered_users(self, count: int) -> int:
        """Made-up people 1..`count` for measured runs: 60 % students, 30 % parents, 10 % teachers in three tenants.

        Adds only the ids that are missing and returns how many those were.
        """

        def add(connection: Connection) -> int:
            added = connection.execute(_INSERT_NUMBERED, {"count": count}).rowcount
            if self._database.dialect == "postgresql":
                connection.execute(_CONTINUE_IDS)
            return added

        return await self._database.write(add)

    async def remove_users(self, user_ids: Iterable[int]) -> int:
        """Delete people; their ledger rows stay. Returns how many there were."""
        gone = users.delete().where(users.c.id.in_(list(user_ids)))
        return await self._database.write(lambda connection: connection.execute(gone).rowcount)

    async def count_users(self, audience: Audience | None = None) -> int:
        """How many active users `audience` has now (default: everybody)."""
        count = _count(*_members(audience or Audience()))
        return await self._database.read(lambda connection: connection.execute(count).scalar_one())

    # -- events and outbox

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
        tenant's people only (except `first_n`, which counts people of all tenants).
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
            event_id = connection.execute(_INSERT_EVENT, values).scalar()
            if event_id is None:
                known = select(events.c.id).where(events.c.tenant == tenant, events.c.key == key)
                return Announcement(connection.execute(known).scalar_one(), new=False)
            connection.execute(_INSERT_OUTBOX, {"event": event_id, "created_at": created_at})
            return Announcement(event_id, new=True)

        return await self._database.write(store)

    async def add_events(self, rows: Sequence[EventRow]) -> None:
        """Store events of a measured run, under the ids that they have, with their outbox rows, in one transaction."""
        values = [asdict(row) | {"audience": row.audience.to_json()} for row in rows]
        waiting = [{"event": row.id, "created_at": row.created_at} for row in rows]

        def store(connection: Connection) -> None:
            connection.execute(events.insert(), values)
            connection.execute(_INSERT_OUTBOX, waiting)

        await self._database.write(store)

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
        delivered = waiting.values(delivered_at=_now(at))
        await self._database.write(lambda connection: connection.execute(delivered))

    async def delivered_since(self, at: float) -> list[int]:
        """Events that the broker took at `at` or later, oldest first."""
        recent = select(outbox.c.event_id).where(outbox.c.delivered_at >= at).order_by(outbox.c.event_id)
        return await self._database.read(lambda connection: list(connection.execute(recent).scalars()))

    async def event(self, event_id: int) -> EventRow | None:
        known = select(events).where(events.c.id == event_id)
        row = await self._database.read(lambda connection: connection.execute(known).mappings().one_or_none())
        return EventRow(**{**row, "audience": Audience.from_json(row["audience"])}) if row else None

    # -- fan-out

    async def audience_page(self, audience: Audience, after: int, limit: int) -> list[int]:
        """Ids of the next `limit` active users of the audience, all greater than `after`, in order."""
        members = select(users.c.id).where(users.c.id > after, *_members(audience))
        page = members.order_by(users.c.id).limit(limit)
        if self._as_json:
            as_one = select(func.json_group_array(page.subquery().c.id))
            return await self._database.read(lambda connection: json.loads(connection.execute(as_one).scalar_one()))
        return await self._database.read(lambda connection: list(connection.execute(page).scalars()))

    async def fan_out_cursor(self, event_id: int, job_type: str) -> int:
        """The last user id whose batch is known to be enqueued; 0 before the first."""
        values = {"event": event_id, "job_type": job_type}
        return await self._database.read(lambda connection: connection.execute(_SELECT_CURSOR, values).scalar() or 0)

    async def advance_fan_out(
        self,
        event_id: int,
        job_type: str,
        cursor: int,
        batches: int,
        users: int,
        finished: bool,
        *,
        at: float | None = None,
    ) -> None:
        """A page of `users` users in `batches` batches, which ends at user id `cursor`, is enqueued.

        A page that does not move the cursor forward is not counted again, so a fan-out that was killed between
        enqueueing and this call may repeat its page. `finished` stays true.
        """
        values = {
            "event": event_id,
            "job_type": job_type,
            "cursor": cursor,
            "batches": batches,
            "users": users,
            "finished_at": _now(at) if finished else None,
        }
        await self._database.write(lambda connection: connection.execute(_ADVANCE, values))

    # -- ledger

    async def begin_batch(self, event_id: int, users: Sequence[int], channel: str) -> Batch:
        """Make sure that `users` have a ledger row, and find those who are still pending, in order of id.

        Whoever was deleted or deactivated since the fan-out is `gone`: failed from now on, as the ledger says.
        """
        values = self._among(event_id, users, channel)

        def begin(connection: Connection) -> Batch:
            connection.execute(self._insert_pending, {**values, "error": "", "at": None})
            found = connection.execute(self._select_pending, values)
            rows: Sequence[Any] = json.loads(found.scalar_one()) if self._as_json else found.all()
            if gone := [row[0] for row in rows if row[1] is None]:
                missing = self._among(event_id, gone, channel)
                connection.execute(self._insert_failed, {**missing, "error": GONE, "at": None})
            return Batch([Recipient(*row) for row in rows if row[1] is not None], len(gone))

        return await self._database.write(begin)

    async def record_results(self, results: Sequence[SendResult]) -> None:
        """Write how sends ended. What is sent stays sent, and a failure never overwrites anything but pending."""
        if not results:
            return
        # In the order of the key, so that two processes with the same rows cannot wait for each other on PostgreSQL.
        # Of two results of one user a success counts, else the first.
        by_key: dict[tuple[int, int, str], SendResult] = {}
        for result in sorted(results, key=lambda result: result.status != "sent"):
            by_key.setdefault((result.event, result.user, result.channel), result)
        ordered = [by_key[key] for key in sorted(by_key)]
        values = [
            {
                "event": result.event,
                "user": result.user,
                "channel": result.channel,
                "status": result.status,
                "message_id": _storable(result.message_id),
                "error": _storable(result.error),
                "sent_at": result.sent_at,
                "unless": "sent" if result.status == "sent" else "failed",
            }
            for result in ordered
        ]
        if self._as_json:
            await self._database.write(lambda c: c.execute(_RECORD_JSON, {"rows": json.dumps(values)}))
        else:
            await self._database.write(lambda connection: connection.execute(_RECORD, values))

    async def abandon(
        self, event_id: int, users: Sequence[int], channel: str, error: str, *, at: float | None = None
    ) -> int:
        """A job died: those of its `users` who are still pending (or were never begun) failed for the reason `error`.

        Returns how many those were.
        """
        values = {**self._among(event_id, users, channel), "error": _storable(error), "at": _now(at)}
        return await self._database.write(lambda connection: connection.execute(self._insert_failed, values).rowcount)

    async def reopen(self, event_id: int, users: Sequence[int], channel: str) -> int:
        """A dead letter is replayed: those of its `users` who failed are pending again. Returns how many."""
        values = self._among(event_id, users, channel)
        return await self._database.write(lambda connection: connection.execute(self._reopen, values).rowcount)

    async def progress(self, event_id: int) -> Progress:
        return await self._database.read(partial(_progress, event_id))

    async def ended(self, event_id: int, users: Sequence[int], channel: str) -> list[tuple[str, float | None]]:
        """(status, when) of those of `users` whose send has ended, in no order."""
        values = self._among(event_id, users, channel)
        rows = await self._database.read(lambda connection: connection.execute(self._ended, values).all())
        return [(status, at) for status, at in rows]

    async def failures(self, event_id: int, limit: int = 100) -> list[Failure]:
        """Who was not served, and why, in order of user id."""
        values = {"event": event_id, "limit": limit}
        rows = await self._database.read(lambda connection: connection.execute(_FAILURES, values).all())
        return [Failure(*row) for row in rows]

    def _among(self, event_id: int, users: Sequence[int], channel: str) -> dict[str, Any]:
        """The parameters of a statement over a batch: the ids are one parameter, however many there are."""
        ids: Any = json.dumps(list(users)) if self._database.dialect == "sqlite" else list(users)
        first, last = min(users, default=0), max(users, default=0)
        return {"event": event_id, "users": ids, "first": first, "last": last, "channel": channel}


# One text serves both databases. CAST gives PostgreSQL the type of a bare parameter.
_UPSERT_USER = text(
    "INSERT INTO users (email, name, role, tenant, active) VALUES (:email, :name, :role, :tenant, TRUE)"
    " ON CONFLICT (tenant, email) DO UPDATE SET name = excluded.name, role = excluded.role, active = TRUE"
)
_INSERT_NUMBERED = text(
    "INSERT INTO users (id, email, name, role, tenant, active)"
    " WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < CAST(:count AS INTEGER))"
    " SELECT i, 'user' || i || '@users.example', 'User ' || i,"
    " CASE WHEN i % 10 < 6 THEN 'student' WHEN i % 10 < 9 THEN 'parent' ELSE 'teacher' END,"
    f" CASE i % 3 WHEN 0 THEN '{TENANTS[0]}' WHEN 1 THEN '{TENANTS[1]}' ELSE '{TENANTS[2]}' END, TRUE"
    " FROM numbers WHERE TRUE ON CONFLICT DO NOTHING"
)
_CONTINUE_IDS = text("SELECT setval(pg_get_serial_sequence('users', 'id'), (SELECT max(id) FROM users))")
_INSERT_EVENT = text(
    "INSERT INTO events (key, topic, title, body, audience, tenant, created_at)"
    " VALUES (:key, :topic, :title, :body, :audience, :tenant, :created_at)"
    " ON CONFLICT (tenant, key) DO NOTHING RETURNING id"
)
_INSERT_OUTBOX = text("INSERT INTO outbox (event_id, created_at) VALUES (:event, :created_at)")
_SELECT_CURSOR = text("SELECT cursor FROM fan_outs WHERE event_id = :event AND job_type = :job_type")
_ADVANCE = text(
    "INSERT INTO fan_outs (event_id, job_type, cursor, batches, users, finished_at)"
    " VALUES (:event, :job_type, :cursor, :batches, :users, :finished_at)"
    " ON CONFLICT (event_id, job_type) DO UPDATE SET"
    " batches = fan_outs.batches + CASE WHEN excluded.cursor > fan_outs.cursor THEN excluded.batches ELSE 0 END,"
    " users = fan_outs.users + CASE WHEN excluded.cursor > fan_outs.cursor THEN excluded.users ELSE 0 END,"
    " cursor = CASE WHEN excluded.cursor > fan_outs.cursor THEN excluded.cursor ELSE fan_outs.cursor END,"
    " finished_at = coalesce(fan_outs.finished_at, excluded.finished_at)"
)
_RECORD = text(
    "UPDATE notifications SET status = :status, message_id = :message_id, error = :error, sent_at = :sent_at"
    " WHERE event_id = :event AND user_id = :user AND channel = :channel AND status NOT IN ('sent', :unless)"
)
_FIELDS = ("event", "user", "channel", "status", "message_id", "error", "sent_at", "unless")
_RESULTS = ", ".join(f"value ->> '{name}' AS {name}" for name in _FIELDS)
_RECORD_JSON = text(
    "UPDATE notifications AS n SET status = r.status, message_id = r.message_id, error = r.error, sent_at = r.sent_at"
    f" FROM (SELECT {_RESULTS} FROM json_each(CAST(:rows AS TEXT))) AS r"
    " WHERE n.event_id = r.event AND n.user_id = r.user AND n.channel = r.channel"
    " AND n.status NOT IN ('sent', r.unless)"
)
_FAN_OUTS = text("SELECT coalesce(max(users), 0), count(*), count(finished_at) FROM fan_outs WHERE event_id = :event")
_COUNT_BY_STATUS = text("SELECT status, count(*) FROM notifications WHERE event_id = :event GROUP BY status")
_FAILURES = text(
    "SELECT n.user_id, n.channel, coalesce(u.email, ''), n.error FROM notifications AS n"
    " LEFT JOIN users AS u ON u.id = n.user_id WHERE n.event_id = :event AND n.status = 'failed'"
    " ORDER BY n.user_id, n.channel LIMIT :limit"
)


def _ledger_insert(ids: str, status: str, on_conflict: str) -> TextClause:
    return text(
        "INSERT INTO notifications (event_id, user_id, channel, status, message_id, error, sent_at)"
        f" SELECT CAST(:event AS INTEGER), i.id, CAST(:channel AS TEXT), '{status}', '', CAST(:error AS TEXT),"
        f" CAST(:at AS DOUBLE PRECISION) FROM ({ids}) AS i WHERE TRUE ORDER BY i.id ON CONFLICT {on_conflict}"
    )


def _add_users(rows: list[dict[str, str]], connection: Connection) -> int:
    if connection.dialect.name == "postgresql":  # else another import would be counted as ours
        connection.execute(text("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE"))
    last: int = connection.execute(select(func.coalesce(func.max(users.c.id), 0))).scalar_one()
    connection.execute(_UPSERT_USER, rows)
    added: int = connection.execute(_count(users.c.id > last)).scalar_one()
    return added


def _progress(event_id: int, connection: Connection) -> Progress:
    found, pages, finished = connection.execute(_FAN_OUTS, {"event": event_id}).one()
    rows = connection.execute(_COUNT_BY_STATUS, {"event": event_id})
    by_status: dict[str, int] = {row[0]: row[1] for row in rows}
    sent, failed = by_status.get("sent", 0), by_status.get("failed", 0)
    total = max(found, sum(by_status.values()))
    percent = 100 * (sent + failed) / total if total else 0.0
    return Progress(
        total, total - sent - failed, sent, failed, percent, fan_out_finished=pages > 0 and finished == pages
    )


def _members(audience: Audience) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [users.c.active]
    if audience.roles:
        conditions.append(users.c.role.in_(audience.roles))
    if audience.tenant:
        conditions.append(users.c.tenant == audience.tenant)
    if audience.first_n is not None:
        conditions.append(users.c.id <= audience.first_n)
    if audience.nobody:
        conditions.append(false())
    return conditions


def _count(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(func.count()).select_from(users).where(*conditions)


def _storable(reason: str) -> str:
    """A server's words as text that both databases take: PostgreSQL has no NUL, neither has half a character."""
    return reason.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")[:_ERROR_LENGTH]


def _now(at: float | None) -> float:
    return time.time() if at is None else at
