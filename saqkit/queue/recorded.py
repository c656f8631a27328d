"""What the queue's scripts recorded of the attempts that ended, as the attempts table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from saqkit.queue.letter import tenant_of

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def read(record: bytes, queue: str, run: str, clock_offset_s: float = 0.0) -> Row:
    """A row of the attempts table from a record of `scripts/keys.lua`; times are Unix seconds of the broker's clock.

    `clock_offset_s` is what the clock that stamped the events lacks of the broker's. Beside the columns a row has
    `whom`: the users of a job whose worker could not say any more how far it came, else None.
    """
    outcome, job, at, attempt, crashes, priority, queued_at, ready_at, taken_at, worker, text = json.loads(
        record.decode(errors="replace")
    )
    row, whom = _row(text), None
    if outcome in ("lost", "cancelled") and "kwargs" in row:  # the job's body, in place of what its worker knew
        users = (row["kwargs"] or {}).get("users")
        whom = users if isinstance(users, list) else []
        row = {"function": row["function"], "meta": row.get("meta"), "users": len(whom)}
    meta: Mapping[str, Any] = row["meta"] if isinstance(row.get("meta"), dict) else {}
    event_at = meta.get("event_at")
    taken, finished = float(taken_at), float(at)
    users, done, failed = (int(row.get(name, 0)) for name in ("users", "users_done", "users_failed"))
    return {
        "run": run,
        "event": str(meta.get("event", "")),
        "event_at": event_at + clock_offset_s if isinstance(event_at, int | float) else float(queued_at),
        "job": job,
        "job_type": row.get("function", ""),
        "queue": queue,
        "parent": str(meta.get("parent", "")),
        "priority": int(priority),
        "tenant": tenant_of(meta),
        "attempt": int(attempt),
        "crashes": int(crashes),
        "users": users,
        "users_done": done,
        "users_failed": users - done if outcome == "dead" else failed,  # who is left when a job dies has failed
        "queued_at": float(queued_at),
        "ready_at": float(ready_at),
        "taken_at": taken,
        # Stamped by the worker, whose clock's offset is known to a fraction of a millisecond only.
        "started_at": min(max(taken, float(row.get("started_at") or taken)), finished),
        "finished_at": finished,
        "outcome": outcome,
        "worker": worker,
        "host": row.get("host", ""),
        "cpu_s": float(row.get("cpu_s", 0.0)),
        "provider_s": float(row.get("provider_s", 0.0)),
        "database_s": float(row.get("database_s", 0.0)),
        "error": row.get("error", ""),
        "whom": whom,
    }


def _row(text: str) -> Row:
    """What a worker knew of an attempt, or a job's body; nothing, if it is not JSON but a codec's of somebody's own."""
    try:
        row = json.loads(text)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def attempts_of(rows: Iterable[Row]) -> pd.DataFrame:
    """The attempts table: in order of finish, times in seconds since the first event."""
    from saqkit.spec.trace import attempts_frame

    ordered = sorted(rows, key=lambda row: (row["finished_at"], row["job"]))
    start = min((row["event_at"] for row in ordered), default=0.0)
    times = ("event_at", "queued_at", "ready_at", "taken_at", "started_at", "finished_at")
    return attempts_frame([{**row, **{name: row[name] - start for name in times}} for row in ordered])
