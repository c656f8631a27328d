"""From what the queue's scripts recorded to the attempts table, and from the workers' files to the steps table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from saqkit.app.store import Store
from saqkit.queue.recorded import Row as Row
from saqkit.queue.recorded import attempts_of as attempts_of
from saqkit.queue.recorded import read as read
from saqkit.spec.lifecycle import POISON_CRASHES
from saqkit.spec.trace import steps_frame


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
