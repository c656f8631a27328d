"""From what the queue's scripts recorded to the attempts table, and from the workers' files to the steps table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from saqkit.spec.trace import attempts_frame, steps_frame


def attempts_of(rows: Iterable[tuple[str, bytes]], run: str, prefix: str = "") -> pd.DataFrame:
    """The attempts table of recorded rows, (queue, JSON array of `record` in `scripts/keys.lua`) each.

    Times become seconds since the first event. `users` of a lost attempt are those of its job.
    """
    attempts = [_attempt(queue.removeprefix(prefix), json.loads(raw), run) for queue, raw in rows]
    start = min((row["event_at"] for row in attempts), default=0.0)
    for row in attempts:
        for name in ("event_at", "queued_at", "ready_at", "taken_at", "started_at", "finished_at"):
            row[name] -= start
    attempts.sort(key=lambda row: (row["finished_at"], row["job"]))
    return attempts_frame(attempts)


def epochs(rows: Iterable[tuple[str, bytes]]) -> list[float]:
    """When the events of the recorded attempts were created, in Unix seconds."""
    return [_attempt(queue, json.loads(raw), "")["event_at"] for queue, raw in rows]


def users_of_lost(rows: Iterable[tuple[str, bytes]]) -> dict[str, list[int]]:
    """The users of every job of which an attempt was lost, by job."""
    found = {}
    for _, raw in rows:
        outcome, job, *_, text = json.loads(raw)
        if outcome == "lost":
            found[job] = (json.loads(text).get("kwargs") or {}).get("users") or []
    return found


def _attempt(queue: str, record: list[Any], run: str) -> dict[str, Any]:
    outcome, job, at, attempt, crashes, priority, queued_at, ready_at, taken_at, worker, text = record
    if outcome in ("lost", "cancelled") and '"kwargs"' in text:  # the worker could not say: all we have is the body
        body = json.loads(text)
        row = {"function": body["function"], "meta": body.get("meta", {}),
               "users": len((body.get("kwargs") or {}).get("users", ()))}  # fmt: skip
    else:
        row = json.loads(text)
    meta: Mapping[str, Any] = row.get("meta", {})
    taken = float(taken_at)
    # A record's attempt and ready time are read as the attempt ends: they are still this attempt's.
    return {
        "run": run,
        "event": str(meta.get("event", "")),
        "event_at": float(meta.get("event_at", queued_at)),
        "job": job,
        "job_type": row.get("function", ""),
        "queue": queue,
        "parent": meta.get("parent", ""),
        "priority": int(priority),
        "tenant": meta.get("tenant", ""),
        "attempt": int(attempt),
        "crashes": int(crashes),
        "users": int(row.get("users", 0)),
        "users_done": int(row.get("users_done", 0)),
        "users_failed": int(row.get("users_failed", 0)),
        "queued_at": float(queued_at),
        "ready_at": float(ready_at),
        "taken_at": taken,
        "started_at": max(taken, float(row.get("started_at") or taken)),
        "finished_at": float(at),
        "outcome": outcome,
        "worker": worker,
        "host": row.get("host", ""),
        "cpu_s": float(row.get("cpu_s", 0.0)),
        "provider_s": float(row.get("provider_s", 0.0)),
        "database_s": float(row.get("database_s", 0.0)),
        "error": row.get("error", ""),
    }


def steps_of(folder: Path, most: int = 10_000) -> pd.DataFrame:
    """The steps table of what the workers of a run wrote to `folder`; at most `most` rows, evenly chosen."""
    rows = []
    for path in sorted(folder.glob("*.steps")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the last line of a worker that was killed
    if len(rows) > most:
        rows = [rows[int(n * len(rows) / most)] for n in range(most)]
    names = ("job", "attempt", "user", "step", "waited_s", "took_s")
    return steps_frame([dict(zip(names, row, strict=True)) for row in rows])
