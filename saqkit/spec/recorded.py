"""What `saqkit.record` wrote, read back: the files of all processes of a folder, merged on the broker's clock."""

from __future__ import annotations

import json
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saqkit.errors import RunError
from saqkit.spec import trace
from saqkit.spec.journals import FORMAT, default_folder
from saqkit.spec.lifecycle import on_tick

MOST_STEPS = 10_000
SILENT_S = 90.0
"""A process of another host that ran a job and said nothing for so long is taken to be dead."""
TOLERANCE_S = 0.002
"""SAQ stamps in whole milliseconds."""
TIMES = ("event_at", "queued_at", "ready_at", "taken_at", "started_at", "finished_at")
_ENDED = ("queue", "key", "queued", "job_type", "attempt", "crashes", "priority", "tenant", "scheduled", "begun",
          "worker", "taken_at", "started_at", "returned_at", "finished_at", "outcome", "cpu_us", "error",
          "delay_s")  # fmt: skip
_BEGUN = ("queue", "key", "queued", "job_type", "attempt", "worker", "taken_at", "started_at")

Row = dict[str, Any]
JobKey = tuple[str, str, int]
"""Queue, key, and when it was enqueued in milliseconds: cron jobs use one key again and again."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What a SAQ application did.

    `attempts` and `steps` are the tables of `saqkit.spec.trace`; times are seconds since the first job was enqueued,
    which was at `epoch` (Unix seconds, the broker's clock). Of an attempt, `cpu_s` is the CPU of its own task, and
    `provider_s` all that it waited for, whatever that was. `workers` are dicts as in `Run`, with the facts of each
    worker (`queue`, `kind`, `concurrency`, `cores`, ...); `types` what SAQ was told of each function (`retries`,
    `retry_delay`, `retry_backoff`, `timeout`); `notes` what a reader should know.
    """

    attempts: pd.DataFrame
    steps: pd.DataFrame
    epoch: float
    workers: tuple[dict[str, Any], ...] = ()
    types: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def measures(self) -> dict[str, float]:
        """The measures by name, see `saqkit.spec.trace.measures`."""
        return trace.measures(self.attempts)

    def summary(self) -> pd.DataFrame:
        """A row per measure, column `measured`; seconds, users (here: jobs) per second, or counts as the name says."""
        return pd.DataFrame({"measured": self.measures()}).rename_axis("measure")

    def __repr__(self) -> str:
        return (
            f"Recording({len(self.attempts):,} attempts of {self.attempts['job'].nunique():,} jobs, "
            f"{len(self.workers)} worker{'' if len(self.workers) == 1 else 's'}, "
            f"{trace.makespan_s(self.attempts):.2f} s)"
        )

    def _repr_html_(self) -> str:
        return f"<p><code>{self!r}</code></p>" + self.summary().round(3).to_html()


def read_recording(folder: str | Path | None = None) -> Recording:
    """Merge the files of a recording (default: of the default folder) into one attempts table and one steps table.

    Files may be of several processes and hosts, of processes that still run, and of ones that were killed: what they
    wrote is read, and attempts that they had begun are `lost`. All times are put on the broker's clock by the offsets
    that each process measured. Raises `RunError` where there is no recording.
    """
    place = default_folder() if folder is None else Path(folder)
    paths = sorted(place.glob("*.jsonl")) if place.is_dir() else []
    if not paths:
        raise RunError(f"{place}: no recording is there (saqkit.record writes *.jsonl files into a folder)")
    files = [read for path in paths if (read := _File.read(path)) is not None]
    merged = _Merged(files)
    if not merged.rows:
        raise RunError(f"{place}: {len(paths)} files, but no attempt of a job has ended in them yet")
    epoch = min(row["event_at"] for row in merged.rows)
    rows = [{**row, **{name: row[name] - epoch for name in TIMES}} for row in merged.rows]
    rows.sort(key=lambda row: (row["finished_at"], row["job"]))
    workers = tuple(worker for file in files for worker in file.workers(epoch))
    notes = (*(note for file in files for note in file.notes), *merged.notes)
    attempts = trace.attempts_frame(rows)
    return Recording(attempts, _steps(attempts), epoch, workers, merged.types, notes)


class _File:
    """What one process wrote; times are put on the broker's clock while it is read."""

    def __init__(self, path: Path, lines: list[Any]) -> None:
        self.path, self.facts = path, lines[0][2]
        if self.facts.get("format") != FORMAT:
            raise RunError(f"{path}: format {self.facts.get('format')}, this saqkit reads format {FORMAT}")
        self.host = str(self.facts["host"])
        batches = [line for line in lines if line[0] == "r"]
        self.rows: list[Any] = [row for line in batches for row in line[3]]
        self.ended_well = any(line[0] == "x" for line in lines)
        said = [line for line in lines if line[0] in "rx"]
        self.last_at: int = (said or lines)[-1][1]
        self.cpu_s: float = said[-1][2] if said else 0.0
        clocks = [row for row in self.rows if row[0] == "c"]
        self._clock = [row[1] / 1e6 for row in clocks], [row[2] for row in clocks]
        self.notes = [] if clocks else [f"{path.name}: its clock was never compared with the broker's"]

    @classmethod
    def read(cls, path: Path) -> _File | None:
        lines = []
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue  # cut off as the machine went down
        return cls(path, lines) if lines and lines[0][0] == "h" else None

    def offset(self, at: float) -> float:
        """Seconds from this process's clock to the broker's at a Unix time, between those at which it was measured."""
        return float(np.interp(at, *self._clock)) if self._clock[0] else 0.0

    def shared(self, at_us: float | None) -> float:
        """A time of this process, in microseconds, as Unix seconds of the broker's clock; NaN if there is none."""
        return nan if at_us is None else at_us / 1e6 + self.offset(at_us / 1e6)

    def dead(self) -> bool:
        """Whether the process ended without having said so."""
        import psutil

        if self.ended_well:
            return False
        if self.host == socket.gethostname():
            try:
                return bool(abs(psutil.Process(self.facts["pid"]).create_time() - self.facts["created"]) > 1)
            except psutil.NoSuchProcess:
                return True
        return self.shared(time.time() * 1e6) - self.shared(self.last_at) > SILENT_S

    def workers(self, epoch: float) -> Iterator[dict[str, Any]]:
        """The workers of this process; CPU is of the process, from the worker's start to what was written last."""
        for row in self.rows:
            if row[0] == "w":
                yield {
                    "host": self.host,
                    "pid": self.facts["pid"],
                    "ready_at": self.shared(row[1]) - epoch,
                    "cpu_s": self.cpu_s - row[2],
                    "jobs": sum(1 for other in self.rows if other[0] == "a" and other[11] == row[3]["worker"]),
                    "clock_offset_s": self.offset(row[1] / 1e6),
                    "cores": self.facts["cores"],
                    **row[3],
                }


class _Merged:
    """The rows of the attempts table from all files."""

    def __init__(self, files: Iterable[_File]) -> None:
        self.notes: list[str] = []
        self.types: dict[str, dict[str, Any]] = {}
        self._queued: dict[JobKey, float] = {}
        self._parent: dict[JobKey, JobKey] = {}
        self._promoted: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._tick: dict[str, float] = {}
        ended: dict[tuple[JobKey, int, int], Row] = {}
        begun: dict[tuple[JobKey, int], tuple[Row, _File]] = {}
        bulk: dict[tuple[str, str], tuple[float, Any]] = {}
        for file in files:
            for row in file.rows:
                match row[0]:
                    case "a":
                        found = self._attempt(row, _ENDED, file)
                        place = (found["id"], found["attempt"], found["crashes"])
                        ended[place] = _better(ended.get(place), found)
                    case "b":
                        found = self._attempt(row, _BEGUN, file)
                        begun[found["id"], found["attempt"]] = found, file
                    case "e":
                        if row[3]:
                            self._enqueued((row[1], row[2], row[3]), file.shared(row[4]), row[5])
                        else:
                            bulk[row[1], row[2]] = file.shared(row[4]), row[5]
                    case "p":
                        for key in row[3]:
                            self._promoted[row[1], key].append(file.shared(row[2]))
                    case "t":
                        self.types[row[1]] = row[2]
                    case "w" if "tick_s" in row[3]:
                        self._tick[row[3]["queue"]] = row[3]["tick_s"]
        jobs: dict[JobKey, list[Row]] = defaultdict(list)
        for row in ended.values():
            jobs[row["id"]].append(row)
        for (job, attempt), (row, file) in begun.items():
            if all(other["attempt"] != attempt or other["taken_at"] != row["taken_at"] for other in jobs.get(job, [])):
                self._lost(row, file, jobs)
        for queue, key, queued in jobs:
            if (queue, key) in bulk and (queue, key, queued) not in self._queued:
                self._enqueued((queue, key, queued), *bulk[queue, key])
        self._names = _names(jobs)
        self._by_key = {(key, queued): (queue, key, queued) for queue, key, queued in jobs}
        self.rows = [row for job, rows in jobs.items() for row in self._finished(job, rows)]

    def _enqueued(self, job: JobKey, at: float, parent: Any) -> None:
        self._queued[job] = at
        if parent is not None:
            self._parent[job] = ("", parent[0], parent[1])  # of whatever queue

    def _attempt(self, row: list[Any], names: tuple[str, ...], file: _File) -> Row:
        found = dict(zip(names, row[1:], strict=True))
        found["id"] = (found.pop("queue"), found.pop("key"), found["queued"])
        for name in ("taken_at", "started_at", "returned_at", "finished_at"):
            found[name] = file.shared(found.get(name))
        if "cpu_us" in found:
            found["cpu_s"] = found.pop("cpu_us") / 1e6
            found["delay_s"] = nan if found["delay_s"] is None else found["delay_s"]
        return {**found, "host": file.host}

    def _lost(self, row: Row, file: _File, jobs: dict[JobKey, list[Row]]) -> None:
        """An attempt that began and did not end: its worker died, or it still runs."""
        later = [other["taken_at"] for other in jobs.get(row["id"], []) if other["taken_at"] > row["taken_at"]]
        swept = [r for r in jobs.get(row["id"], []) if r["outcome"] == "lost" and r["attempt"] == row["attempt"]]
        if swept:
            swept[0].update({name: row[name] for name in ("taken_at", "started_at", "host")})
        elif later or file.dead():
            seen = min(later, default=max(file.shared(file.last_at), row["taken_at"]))
            blank = {"crashes": 0, "priority": 0, "tenant": "", "scheduled": 0, "cpu_s": 0.0, "delay_s": nan}
            jobs[row["id"]].append(
                {**blank, **row, "outcome": "lost", "error": "WorkerLost", "finished_at": seen, "begun": 0}
            )

    def _finished(self, job: JobKey, rows: list[Row]) -> Iterator[Row]:
        """The attempts of a job in order, with what follows from their order."""
        rows.sort(key=lambda row: (row["attempt"], row["crashes"], row["finished_at"]))
        queue, key, _ = job
        root = self._root(job)
        # Without a row of its producer, SAQ's own stamp has to do: whole milliseconds, of the producer's clock.
        queued_at, event_at = (self._queued.get(one, one[2] / 1000) for one in (job, root))
        parent, before = self._parent_of(job), None
        for row in rows:
            taken = row["taken_at"] if not isnan(row["taken_at"]) else (row["begun"] or row["queued"]) / 1000
            finished = max(row["finished_at"], taken)
            started = min(max(row["started_at"], taken), finished) if not isnan(row["started_at"]) else taken
            returned = row["returned_at"] if not isnan(row["returned_at"]) else finished
            ready = self._ready_at(queue, key, queued_at, row, before, taken)
            done = row["outcome"] == "done"
            yield {
                "run": "recorded",
                "event": self._names.get(root, root[1]),
                "event_at": min(event_at, queued_at, ready),
                "job": self._names[job],
                "job_type": row["job_type"],
                "queue": queue,
                "parent": self._names.get(parent, "") if parent else "",
                "priority": min(max(row["priority"], -128), 127),
                "tenant": row["tenant"],
                "attempt": row["attempt"],
                "crashes": row["crashes"],
                "users": 1,
                "users_done": int(done),
                "users_failed": int(row["outcome"] in ("dead", "cancelled")),
                "queued_at": min(queued_at, ready),
                "ready_at": ready,
                "taken_at": taken,
                "started_at": started,
                "finished_at": finished,
                "outcome": row["outcome"],
                "worker": row["worker"],
                "host": row["host"],
                "cpu_s": row["cpu_s"],
                "provider_s": max(0.0, min(returned, finished) - started - row["cpu_s"]),
                "database_s": 0.0,
                "error": row["error"],
            }
            before = {**row, "finished_at": finished}

    def _ready_at(self, queue: str, key: str, queued_at: float, row: Row, before: Row | None, taken: float) -> float:
        """When it could first be taken: as a worker saw it become ready, else as it was due."""
        since = queued_at if before is None else before["finished_at"]
        seen = [at for at in self._promoted.get((queue, key), []) if since - TOLERANCE_S <= at <= taken + TOLERANCE_S]
        if seen:
            ready = max(seen)
        elif before is None or isnan(before["delay_s"]):
            ready = max(since, row["scheduled"])
        else:
            due = since + before["delay_s"]
            ready = on_tick(due, self._tick[queue]) if queue in self._tick and before["delay_s"] else due
        return float(min(ready, taken))

    def _parent_of(self, job: JobKey) -> JobKey | None:
        """Who enqueued a job, under the parent's own queue."""
        parent = self._parent.get(job)
        if parent is None:
            return None
        return self._by_key.get(parent[1:], parent)

    def _root(self, job: JobKey) -> JobKey:
        """The job from which a chain of jobs began."""
        seen = {job}
        while (parent := self._parent_of(job)) is not None and parent not in seen:
            seen.add(parent)
            job = parent
        return job


def _better(one: Row | None, other: Row) -> Row:
    """Of two rows of one attempt, the worker's own; one that was cancelled by who swept it up was lost."""
    if one is None:
        return other
    own, swept = (one, other) if other["outcome"] == "lost" else (other, one)
    return {**own, "outcome": "lost"} if (own["outcome"], swept["outcome"]) == ("cancelled", "lost") else own


def _names(jobs: Iterable[JobKey]) -> dict[JobKey, str]:
    """A name for each job: its key, and a number where a key was used again."""
    names, used = {}, defaultdict[str, int](int)
    for job in sorted(jobs, key=lambda job: (job[2], job)):
        used[job[1]] += 1
        names[job] = job[1] if used[job[1]] == 1 else f"{job[1]}~{used[job[1]]}"
    return names


def _steps(attempts: pd.DataFrame) -> pd.DataFrame:
    """CPU and waiting of attempts that ran to an end, evenly chosen where there are many."""
    ended = attempts[attempts["outcome"].isin(["done", "retry", "dead"])]
    most = MOST_STEPS // 2
    if len(ended) > most:
        ended = ended.iloc[np.arange(most) * len(ended) // most]
    parts = [
        pd.DataFrame({"job": ended["job"], "attempt": ended["attempt"], "user": 1, "step": step, "waited_s": 0.0,
                      "took_s": ended[f"{step}_s"]})
        for step in ("cpu", "provider")
    ]  # fmt: skip
    frame = pd.concat(parts).sort_index(kind="stable")
    return trace.steps_frame({str(name): column.to_list() for name, column in frame.items()})
