"""The rows of the ledger: who was sent what, who was not and why, who is still to be served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, TextClause, text

from saqkit.app.database import Database, Dialect
from saqkit.app.store.part import Part, now, storable

GONE = "the user was deleted or deactivated before the message was sent"


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


class LedgerRows(Part):
    """The ledger: one row for each event, user and channel."""

    def __init__(self, database: Database, replica: Database | None = None) -> None:
        super().__init__(database, replica)
        self._sql = _statements(database.dialect)

    async def begin_batch(self, event_id: int, users: Sequence[int], channel: str) -> Batch:
        """Make sure that `users` have a ledger row, and find those who are still pending, in order of id.

        Whoever was deleted or deactivated since the fan-out is `gone`: failed from now on, as the ledger says.
        """
        values = self._among(event_id, users, channel)

        def begin(connection: Connection) -> Batch:
            connection.execute(self._sql.insert_pending, {**values, "error": "", "at": None})
            found = connection.execute(self._sql.select_pending, values)
            rows: Sequence[Any] = json.loads(found.scalar_one()) if self._as_json else found.all()
            if gone := [row[0] for row in rows if row[1] is None]:
                missing = self._among(event_id, gone, channel)
                connection.execute(self._sql.insert_failed, {**missing, "error": GONE, "at": None})
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
                "message_id": storable(result.message_id),
                "error": storable(result.error),
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
        values = {**self._among(event_id, users, channel), "error": storable(error), "at": now(at)}
        failed = self._sql.insert_failed
        return await self._database.write(lambda connection: connection.execute(failed, values).rowcount)

    async def reopen(self, event_id: int, users: Sequence[int], channel: str) -> int:
        """A dead letter is replayed: those of its `users` who failed are pending again. Returns how many."""
        values = self._among(event_id, users, channel)
        return await self._database.write(lambda connection: connection.execute(self._sql.reopen, values).rowcount)

    async def progress(self, event_id: int) -> Progress:
        return await self._database.read(partial(_progress, event_id))

    async def ended(self, event_id: int, users: Sequence[int], channel: str) -> list[tuple[str, float | None]]:
        """(status, when) of those of `users` whose send has ended, in no order."""
        values = self._among(event_id, users, channel)
        rows = await self._database.read(lambda connection: connection.execute(self._sql.ended, values).all())
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


@dataclass(frozen=True, slots=True)
class _Statements:
    """The statements over a batch, as a kind of database takes them."""

    insert_pending: TextClause
    insert_failed: TextClause
    select_pending: TextClause
    reopen: TextClause
    ended: TextClause


@cache
def _statements(dialect: Dialect) -> _Statements:
    if dialect == "sqlite":
        ids = "SELECT DISTINCT value AS id FROM json_each(:users)"
        among = "IN (SELECT value FROM json_each(:users))"
    else:
        ids = "SELECT DISTINCT unnest(CAST(:users AS integer[])) AS id"
        among = "= ANY (CAST(:users AS integer[]))"
    # The bounds are for PostgreSQL, which else reads all rows of a fresh event for each of its batches.
    among = f"user_id BETWEEN :first AND :last AND user_id {among}"
    pending = (
        "SELECT user_id, email, name FROM notifications LEFT JOIN users ON users.id = user_id AND active"
        f" WHERE event_id = :event AND channel = :channel AND status = 'pending' AND {among} ORDER BY user_id"
    )
    if dialect == "sqlite":
        pending = f"SELECT json_group_array(json_array(user_id, email, name)) FROM ({pending})"
    return _Statements(
        insert_pending=_ledger_insert(ids, "pending", "DO NOTHING"),
        insert_failed=_ledger_insert(
            ids,
            "failed",
            "(event_id, user_id, channel) DO UPDATE SET status = 'failed', error = excluded.error,"
            " sent_at = excluded.sent_at WHERE notifications.status = 'pending'",
        ),
        select_pending=text(pending),
        reopen=text(
            "UPDATE notifications SET status = 'pending', error = '', sent_at = NULL WHERE event_id = :event"
            f" AND channel = :channel AND status = 'failed' AND {among}"
        ),
        ended=text(
            "SELECT status, sent_at FROM notifications WHERE event_id = :event AND channel = :channel"
            f" AND status <> 'pending' AND {among}"
        ),
    )


def _ledger_insert(ids: str, status: str, on_conflict: str) -> TextClause:
    return text(
        "INSERT INTO notifications (event_id, user_id, channel, status, message_id, error, sent_at)"
        f" SELECT CAST(:event AS INTEGER), i.id, CAST(:channel AS TEXT), '{status}', '', CAST(:error AS TEXT),"
        f" CAST(:at AS DOUBLE PRECISION) FROM ({ids}) AS i WHERE TRUE ORDER BY i.id ON CONFLICT {on_conflict}"
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
