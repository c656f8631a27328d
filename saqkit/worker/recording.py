"""From what the queue's scripts recorded to the attempts table, and from the workers' files to the steps table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from saqkit.app.store import Store
from saqkit.spec.lifecycle import POISON_CRASHES
from saqkit.spec.trace import attempts_frame, steps_frame

Row = dict[str, Any]


def read(record: bytes, queue: str, run: str, clock_offset_s: float = 0.0) -> Row:
    """A row of the attempts table from a record of `scripts/keys.lua`; times are Unix seconds of the broker's clock.

    `clock_offset_s` is what the clock that stamped the events lacks of the broker's. Beside the columns a row has
    `whom`: the users of a job whose worker could not say any more how far it came, else None.
    """
    outcome, job, at, attempt, crashes, priority, queued_at, ready_at, taken_at, worker, text = json.loads(record)
    row, whom = json.loads(text), None
    if outcome in ("lost", "cancelled") and "kwargs" in row:  # the job's body, in place of what its worker knew
        whom = (row["kwargs"] or {}).get("users") or []
        row = {"function": row["function"], "meta": row.get("meta", {}), "users": len(whom)}
    meta: Mapping[str, Any] = row.get("meta", {})
    taken, finished = float(taken_at), float(at)
    users, done, failed = (int(row.get(name, 0)) for name in ("users", "users_done", "users_failed"))
    return {
        "run": run,
        "event": str(meta.get("event", "")),
        "event_at": float(meta["event_at"]) + clock_offset_s if "event_at" in meta else float(queued_at),
        "job": job,
        "job_type": row.get("function", ""),
        "queue": queue,
        "parent": meta.get("parent", ""),
        "priority": int(priority),
        "tenant": meta.get("tenant", ""),
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


async def credit_lost(rows: Iterable[Row], store: Store, channel_of: Callable[[str], str]) -> None:
    """Fill in whom attempts served before their workers died: the ledger knows. `channel_of` is by job type.

    What the ledger has of a job beyond what its other attempts counted is credited to its lost ones: each gets what
    ended in its time, the last one the rest. So the users of a job add up.
    """
    jobs: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: float(row["taken_at"])):
        jobs.setdefault(row["job"], []).append(row)
    for attempts in jobs.values():
        lost = [row for row in attempts if row["outcome"] == "lost" and row["whom"]]
        if not lost:
            continue
        left, last = len(lost[0]["whom"]), lost[-1]
        ended = await store.ended(int(last["event"]), last["whom"], channel_of(last["job_type"]))
        for column, status in (("users_done", "sent"), ("users_failed", "failed")):
            for row in lost[:-1]:
                row[column] = sum(s == status and row["taken_at"] <= (at or 0) <= row["finished_at"] for s, at in ended)
            others = sum(row[column] for row in attempts if row is not last)
            last[column] = max(0, sum(s == status for s, _ in ended) - others)
        for row in attempts:
            if row in lost:
                row["users"] = left
                if row["crashes"] >= POISON_CRASHES:
                    row["users_failed"] = left - row["users_done"]
            left -= row["users_done"] + row["users_failed"]


def attempts_of(rows: Iterable[Row]) -> pd.DataFrame:
    """The attempts table: in order of finish, times in seconds since the first event."""
    ordered = sorted(rows, key=lambda row: (row["finished_at"], row["job"]))
    start = min((row["event_at"] for row in ordered), default=0.0)
    times = ("event_at", "queued_at", "ready_at", "taken_at", "started_at", "finished_at")
    return attempts_frame([{**row, **{name: row[name] - start for name in times}} for row in ordered])


def steps_of(folder: Path, most: int = 10_000) -> pd.DataFrame:
    """The steps table of what the workers of a run wrote to `folder`; at most `most` rows, evenly chosen."""
    rows = []
    for path in sorted(folder.glob("*.steps")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                job, attempt, steps = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a worker that was killed
            rows += [(job, attempt, *step) for step in steps]
    if len(rows) > most:
        rows = [rows[n * len(rows) // most] for n in range(most)]
    names = ("job", "attempt", "user", "step", "waited_s", "took_s")
    return steps_frame([dict(zip(names, row, strict=True)) for row in rows])
