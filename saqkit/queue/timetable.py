"""Schedules: jobs that a queue gets again and again, once for each firing of a cron line, whoever of its workers lives.

Every process that takes jobs of the queue looks at the clock of the server, and the script that enqueues a firing notes
it, so that of several who come only the first does something. What fired while nobody looked is missed; the schedule
says what becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args
from zoneinfo import ZoneInfo

from saqkit.errors import UsageError
from saqkit.queue import fault_sites
from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.job import QueuedJob, compact
from saqkit.queue.one_task import OneTask
from saqkit.queue.scripts_of_queue import AWAY, Backoff
from saqkit.queue.submitting import NewJob
from saqkit.queue.unique import Unique
from saqkit.spec.base import did_you_mean
from saqkit.spec.cron_line import CronLine

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")

LONGEST_SLEEP_S = 30.0
"""The server's clock may be moved, so it is looked at this often, whenever the next firing is."""
MOST_ON_TIME = 1000
"""At most so many firings that are less than `late_s` late are enqueued at once, the latest."""
Missed = Literal["skip", "once", "all"]


@dataclass(frozen=True)
class Schedule:
    """A function that is called whenever a cron line fires.

    `name` is unique within the queue. `cron` and `zone`: see `CronLine`. Each firing is a job of its own with the key
    `NAME@2026-03-29T06:30:00Z` and the time in its meta (`fires_at`, epoch seconds); `priority` and `properties` as in
    `NewJob`.

    A firing that nobody has dealt with `late_s` after its time is missed: nothing becomes of it ("skip"), or the latest
    missed one is made up for ("once", the default), or each, the latest `most_missed` ("all"). `overlap`: whether a
    firing is enqueued although the job of one before has not ended; else it is left out. Before a process has first
    looked at a schedule (its name, line and zone) nothing is missed.
    """

    name: str
    function: str
    cron: str
    zone: str = "UTC"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    priority: int | str = "normal"
    missed: Missed = "once"
    late_s: float = 60.0
    most_missed: int = 100
    overlap: bool = True
    properties: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        about = f"schedule {self.name}"
        if not re.fullmatch(r"[A-Za-z][\w.:-]{0,63}", self.name, re.ASCII):
            raise UsageError(f'schedule "{self.name}": no name (a letter, then letters, digits, _ . : - up to 64)')
        if self.missed not in get_args(Missed):
            raise UsageError(f'{about}: missed "{self.missed}" ({did_you_mean(self.missed, get_args(Missed))})')
        if not isfinite(self.late_s) or self.late_s <= 0:
            raise UsageError(f"{about}: late_s {self.late_s} (give seconds, more than 0)")
        if not 1 <= self.most_missed <= 10_000:
            raise UsageError(f"{about}: most_missed {self.most_missed} (give 1 to 10,000)")
        if self.missed == "all" and not self.overlap:
            raise UsageError(f'{about}: missed "all" means nothing without overlap (allow it, or say "once")')
        try:
            self.line.next(0)
            self.job(0)
            compact(self.kwargs)
        except UsageError as error:
            raise UsageError(f"{about}: {error}") from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"{about}: its kwargs cannot be written as JSON: {error}") from error

    @cached_property
    def line(self) -> CronLine:
        """When it fires."""
        return CronLine(self.cron, self.zone)

    @property
    def mark(self) -> str:
        """Under what the queue keeps its last firing: a schedule with another line or zone begins anew."""
        return f"{self.name} {self.zone} {self.cron}"

    def upcoming(self, number: int, after: datetime | None = None) -> list[datetime]:
        """Its next firings, in its zone."""
        at, found = (after or datetime.now(UTC)).timestamp(), []
        for _ in range(number):
            at = self.line.next(at)
            found.append(datetime.fromtimestamp(at, ZoneInfo(self.zone)))
        return found

    def due(self, last: int, now: float) -> tuple[list[int], int]:
        """The firings to enqueue of those after `last`, and the latest that has come."""
        bound = max(float(last), now - self.late_s)
        on_time = self.line.latest(bound, now, MOST_ON_TIME)
        missed = self.line.latest(last, bound, self.most_missed if self.missed == "all" else 1) if bound > last else []
        if missed:
            logger.warning("schedule %s: nobody dealt with its firings in time, the latest of %s (missed: %s)",
                           self.name, stamp(missed[-1]), self.missed)  # fmt: skip
        return [*(missed if self.missed != "skip" else []), *on_time], max([last, *missed, *on_time])

    def job(self, fires_at: int) -> QueuedJob:
        """The job of a firing."""
        meta = {**self.properties.get("meta", {}), "schedule": self.name, "fires_at": fires_at}
        unique = None if self.overlap else Unique(f"schedule {self.name}")
        return NewJob(self.function, self.kwargs, f"{self.name}@{stamp(fires_at)}", self.priority, unique=unique,
                      properties={**self.properties, "meta": meta}).job()  # fmt: skip


def stamp(at: int) -> str:
    """A time as the keys of firings have it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Timetable(OneTask):
    """A task that enqueues the firings of a queue's schedules, from the first `start` to `stop`."""

    def __init__(self, queue: Queue, schedules: Sequence[Schedule]) -> None:
        names = [schedule.name for schedule in schedules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"queue {queue.name}: two schedules are called {min(twice)} (give each its own name)")
        self.schedules = list(schedules)
        super().__init__("saqkit-timetable")
        self._queue = queue

    def start(self) -> None:
        """Begin, unless it runs already or there is nothing to do."""
        if self.schedules:
            self.begin()

    async def fire(self) -> float:
        """Enqueue what has fired since somebody last looked; returns the seconds until the next firing."""
        now, marks = await self._look()
        wait_s = LONGEST_SLEEP_S
        for schedule, mark in zip(self.schedules, marks, strict=True):
            if mark is None:
                await self._queue.enqueuer.fire(f"fire - {int(now)} {schedule.mark}", [])
            else:
                firings, latest = schedule.due(int(mark), now)
                if latest > int(mark):
                    await self.fired(schedule, firings, int(mark), latest)
            wait_s = min(wait_s, schedule.line.next(now) - now)
        return wait_s

    async def fired(self, schedule: Schedule, firings: Sequence[int], mark: int, latest: int) -> None:
        """Enqueue the jobs of some firings, and note the latest, unless somebody else has since `mark`."""
        jobs = [schedule.job(at) for at in firings]
        said = await self._queue.enqueuer.fire(f"fire {mark} {latest} {schedule.mark}", jobs)
        for job, accepted in zip(jobs, said, strict=False):  # nothing is said where another was first
            if not accepted:
                logger.warning("schedule %s: %s is left out, the job before has not ended", schedule.name, job.key)

    async def _look(self) -> tuple[float, list[bytes | None]]:
        queue = self._queue
        async with queue.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hmget(queue.namespace("schedules"), [schedule.mark for schedule in self.schedules])
            if fault_sites.armed:
                fault_sites.armed.at("look.before")
            (seconds, micros), marks = await pipe.execute()
            if fault_sites.armed:
                fault_sites.armed.at("look.after")
        return seconds + micros / 1e6, marks

    async def _run(self) -> None:
        backoff = Backoff(f"timetable of queue {self._queue.name}")
        while True:
            try:
                wait_s = await self.fire()
                backoff.over()
            except AWAY as error:
                await backoff.wait(error)
                continue
            except Exception as error:
                logger.exception("timetable of queue %s", self._queue.name)
                await backoff.wait(error)
                continue
            heed_cancellation()
            await asyncio.sleep(max(0.001, wait_s))
