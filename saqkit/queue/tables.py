"""Jobs, workers and statistics as tables, one call each, with the same columns and dtypes whether empty or not.

The recorded attempts are `saqkit.queue.counting.recorded_attempts`, dead letters
`saqkit.queue.dead_letters.dead_letters_frame`. All are written by `to_parquet` and read as they were by
`pandas.read_parquet`; a CSV file forgets the dtypes, `read_csv` here gives them back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saqkit.errors import UsageError
from saqkit.queue.counting import TIMES, Group, Statistics, statistics
from saqkit.queue.live_jobs import ALL, LiveJob, Which, ended_jobs, live_jobs

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

MOMENT = "datetime64[us, UTC]"

JOBS: dict[str, str] = {
    "key": "str",
    "queue": "str",
    "function": "str",
    "state": "str",
    "priority": "int8",
    "tenant": "str",
    "users": "int32",
    "attempts": "int32",
    "crashes": "int32",
    "queued_at": MOMENT,
    "ready_at": MOMENT,
    "taken_at": MOMENT,
    "worker": "str",
    "kwargs": "str",
    "meta": "str",
}
"""Jobs that have not ended: `state` is waiting, delayed or active; `ready_at` when it can be (or could be) taken;
`taken_at` and `worker` are of the last attempt, NaT and "" before the first; `kwargs` and `meta` are JSON."""

ENDED: dict[str, str] = {**JOBS, "ended_at": MOMENT, "error": "str"}
"""Jobs that are done or cancelled and still kept: as `JOBS`, and when they ended (NaT: nobody knows). `error` is why
they were cancelled, or what the last failed attempt of a job that is done said."""

DEAD_LETTERS: dict[str, str] = {
    "key": "str",
    "queue": "str",
    "function": "str",
    "tenant": "str",
    "error_class": "str",
    "reason": "str",
    "attempts": "int32",
    "crashes": "int32",
    "priority": "int8",
    "users": "int32",
    "queued_at": MOMENT,
    "started_at": MOMENT,
    "died_at": MOMENT,
    "worker": "str",
    "kwargs": "str",
    "meta": "str",
    "error": "str",
}
"""Dead letters: `reason` is the line of `error` that says what happened; `started_at` is that of the last attempt, NaT
where there was none; `kwargs` and `meta` are JSON."""

WORKERS: dict[str, str] = {
    "worker": "str",
    "queue": "str",
    "slots": "Int32",
    "running": "Int32",
    "completed": "int64",
    "failed": "int64",
    "retried": "int64",
    "cancelled": "int64",
    "uptime_s": "float64",
    "loop_lag_s": "float64",
    "loop": "str",
}
"""One row per worker process and queue, of those heard of in the last 30 s. Counts are of this process and queue since
it started; `slots`, `running` and `loop_lag_s` (the longest of 20 s) only `saqkit worker` tells, else <NA>, NaN."""

STATISTICS: dict[str, str] = {
    "queue": "str",
    "by": "str",
    "of": "str",
    "waiting": "int64",
    "active": "Int64",
    "delayed": "Int64",
    "completed": "Int64",
    "failed": "Int64",
    "retried": "Int64",
    "cancelled": "Int64",
    "lost": "Int64",
    "dead": "Int64",
    "workers": "Int64",
    "paused": "boolean",
    "oldest_s": "float64",
    "longest_active_s": "float64",
    "attempts": "int64",
    **dict.fromkeys(TIMES, "float64"),
}
"""One row per queue (`by` "queue", `of` ""), one per priority level (`by` "priority", `of` "1" to "4") and, if asked
for, one per tenant. What is counted for the whole queue only is <NA> in the others (`longest_active_s` NaN), and so is
what was not asked for or not recorded; `Statistics` and `Group` have the meanings: `completed` and `failed` are since
the queue exists in the row of a queue, of the recorded attempts in the others."""


async def jobs_frame(queues: Queue | Iterable[Queue], which: Which = ALL, limit: int | None = None) -> pd.DataFrame:
    """The jobs that have not ended, of each queue at most `limit`, as a table with the columns `JOBS`."""
    rows = []
    for queue in _each(queues):
        async for job in live_jobs(queue, which, limit):
            rows.append(_row(job, JOBS))
    return typed_frame(rows, JOBS)


async def ended_frame(queues: Queue | Iterable[Queue], states: Sequence[str] = ("done", "cancelled")) -> pd.DataFrame:
    """The jobs that are done or cancelled and still kept, in order of their end, as a table with the columns `ENDED`.

    A queue keeps them for their `ttl` (`done_retention_s`: 10 minutes unless said otherwise), and in no list: this
    looks through all jobs of the queues, in pages, as `Queue.clean` does. Of those that ended longer ago only the
    recorded attempts tell. `UsageError` for another state; dead jobs are in `dead_letters_frame`.
    """
    if unknown := [state for state in states if state not in ("done", "cancelled")]:
        raise UsageError(f'there is no table of ended jobs that are "{unknown[0]}" (done, cancelled)')
    found: dict[tuple[str, str], dict[str, Any]] = {}  # a job may be met twice, and has one state
    for queue in _each(queues):
        for state in states:
            async for page in ended_jobs(queue, state):
                for job, ended_at in page:
                    found[queue.name, job.key] = {**_row(job, ENDED), "ended_at": ended_at}
    rows = sorted(found.values(), key=lambda row: (math.isnan(row["ended_at"]), row["ended_at"], row["key"]))
    return typed_frame(rows, ENDED)


def _row(job: LiveJob, columns: Iterable[str]) -> dict[str, Any]:
    row = {name: getattr(job, name, None) for name in columns}
    for name in ("kwargs", "meta"):
        row[name] = json.dumps(row[name], default=repr, ensure_ascii=False)
    return row


async def workers_frame(queues: Queue | Iterable[Queue]) -> pd.DataFrame:
    """The worker processes that live, as a table with the columns `WORKERS`."""
    rows = []
    for queue in _each(queues):
        for name, said in sorted((await queue.info())["workers"].items()):
            counts, told = said.get("stats") or {}, said.get("metadata") or {}
            rows.append({
                "worker": name, "queue": queue.name, "slots": told.get("slots"), "running": told.get("running"),
                "completed": counts.get("complete", 0), "failed": counts.get("failed", 0),
                "retried": counts.get("retried", 0), "cancelled": counts.get("aborted", 0),
                "uptime_s": counts.get("uptime", math.nan) / 1000, "loop_lag_s": told.get("loop_lag_s", math.nan),
                "loop": told.get("loop", ""),
            })  # fmt: skip
    return typed_frame(rows, WORKERS)


async def statistics_frame(queues: Queue | Iterable[Queue], *, tenants: bool = False) -> pd.DataFrame:
    """The statistics of queues, their priority levels and (with `tenants`) their tenants: columns `STATISTICS`."""
    return frame_of([await statistics(queue, tenants=tenants) for queue in _each(queues)])


def frame_of(counted: Iterable[Statistics]) -> pd.DataFrame:
    """Statistics as a table with the columns `STATISTICS`."""
    rows = []
    for one in counted:
        plain = {name: value for name, value in vars(one).items() if name in STATISTICS}
        rows.append({**plain, **one.times, "by": "queue", "of": "", "paused": one.paused is not None,
                     "longest_active_s": one.longest_active_s})  # fmt: skip
        groups: list[tuple[str, Mapping[Any, Group]]] = [("priority", one.priorities), ("tenant", one.tenants or {})]
        for by, of in groups:
            for value, group in of.items():
                facts = {name: fact for name, fact in vars(group).items() if name in STATISTICS}
                rows.append({**facts, **group.times, "queue": one.queue, "by": by, "of": str(value)})
    return typed_frame(rows, STATISTICS)


def read_csv(file: str | Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table that was written by `to_csv(index=False)`, with the dtypes of `columns`, one of `JOBS`, `WORKERS`, …"""
    texts = {name for name, dtype in columns.items() if dtype == "str"}
    read = pd.read_csv(
        file,
        dtype={name: "str" if dtype == MOMENT else dtype for name, dtype in columns.items()},
        keep_default_na=False,
        na_values={name: [""] for name in columns if name not in texts},
    )
    return _typed(read, columns)


def _each(queues: Queue | Iterable[Queue]) -> Iterable[Queue]:
    return queues if isinstance(queues, Iterable) else [queues]


def typed_frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Records as a table with these columns and dtypes; moments are given in epoch seconds."""
    made: dict[str, Any] = {name: [row.get(name) for row in rows] for name in columns}
    for name, dtype in columns.items():
        if dtype == MOMENT:
            micros = np.round(np.array(made[name], dtype=np.float64) * 1e6)
            made[name] = pd.to_datetime(pd.Series(micros), unit="us", utc=True)
        elif dtype == "str":  # half a character, which JSON allows, is no text for a table
            made[name] = [str(text).encode(errors="backslashreplace").decode() for text in made[name]]
    return _typed(pd.DataFrame(made), columns)


def _typed(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    typed = {}
    for name, dtype in columns.items():
        if dtype == MOMENT:
            moments = pd.to_datetime(frame[name], utc=True, format="ISO8601")
            typed[name] = moments.astype(MOMENT)  # type: ignore[call-overload]  # the stubs do not know this dtype
        else:
            # The stubs know no dtype by a variable.
            typed[name] = frame[name].astype(dtype)  # type: ignore[call-overload]
    return pd.DataFrame(typed)
