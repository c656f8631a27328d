"""How far each fan-out is: the cursor from which one that was killed resumes."""

from __future__ import annotations

from sqlalchemy import text

from saqkit.app.store.part import Part, now


class FanOuts(Part):
    """Cursors and counts of fan-outs, by event and job type."""

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
            "finished_at": now(at) if finished else None,
        }
        await self._database.write(lambda connection: connection.execute(_ADVANCE, values))


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
