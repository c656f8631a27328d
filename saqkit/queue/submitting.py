"""`submit`: enqueueing with a delay, a time, a priority by name, uniqueness, and an answer that says what became of it.

SAQ's `enqueue` gives every name that it does not know to the function, so there new names would take arguments away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from math import isfinite
from time import time
from typing import TYPE_CHECKING, Any

from saqkit.errors import UsageError
from saqkit.queue.job import QueuedJob, new_job
from saqkit.queue.unique import Unique
from saqkit.spec.base import did_you_mean
from saqkit.spec.topology import Priority

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

PROPERTIES = ("heartbeat", "meta", "retries", "retry_backoff", "retry_delay", "timeout", "ttl")
"""What else `submit` takes of a job: SAQ's fields of these names."""


@dataclass(frozen=True)
class NewJob:
    """A job to submit: a function with its arguments.

    `key`: none, one is made up. `priority`: 1 to 4, or critical, high, normal, low. Not before `delay_s` seconds from
    now, or not before `at`, a datetime with its time zone, on the server's clock (both: an error; past: at once).
    `unique`: see `Unique`; a text is the id of one until the job's end. `properties`: some of `PROPERTIES`.
    """

    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    priority: int | str = "normal"
    delay_s: float = 0.0
    at: datetime | None = None
    unique: Unique | str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)

    def job(self) -> QueuedJob:
        """What is enqueued. Raises `UsageError` where something of it cannot be."""
        about = f"job {self.key or 'without a key'} ({self.function})"
        if unknown := [name for name in self.properties if name not in PROPERTIES]:
            raise UsageError(f"{about}: a job has no {unknown[0]} ({did_you_mean(unknown[0], PROPERTIES)})")
        given = {**self.properties, "kwargs": dict(self.kwargs), "key": self.key or None}
        job = new_job(self.function, {**given, "priority": level(self.priority, about)})
        if not isfinite(self.delay_s) or self.delay_s < 0:
            raise UsageError(f"{about}: delay_s {self.delay_s} (give seconds, 0 or more)")
        if self.at is not None:
            if self.delay_s:
                raise UsageError(f"{about}: has a delay_s and a time (give one of them)")
            job.__dict__["fixed"] = job.__dict__["scheduled"] = moment(self.at, about)
        elif self.delay_s:
            job.__dict__["scheduled"] = time() + self.delay_s
        if self.unique is not None:
            job.__dict__["unique"] = self.unique if isinstance(self.unique, Unique) else Unique(self.unique)
        return job


@dataclass(frozen=True)
class Submitted:
    """What became of a job: whether it was `accepted`; if not, `key` is that of the job which stands in its way."""

    key: str
    accepted: bool

    def __bool__(self) -> bool:
        return self.accepted


def told(job: QueuedJob, accepted: bool) -> Submitted:
    """The answer for a job that was enqueued, or was not."""
    return Submitted(job.__dict__.get("twin") or job.key, accepted)


async def submit_many(queue: Queue, jobs: Iterable[NewJob], chunk: int) -> AsyncIterator[Submitted]:
    """Submit jobs in chunks, each a round trip; the next is written while the server works on the last."""
    left, under_way = iter(jobs), None
    made: list[QueuedJob] = []
    try:
        while True:
            failed, following = None, []
            try:
                following = [new.job() for new in islice(left, chunk)]
            except Exception as error:  # what is on its way is told first
                failed = error
            if under_way is not None:
                for job, accepted in zip(made, await under_way, strict=True):
                    yield told(job, accepted)
            if failed is not None:
                raise failed
            if not following:
                return
            made = following
            under_way = asyncio.create_task(queue.enqueue_many(made, chunk), name="saqkit-submit")
            await asyncio.sleep(0)
    finally:
        if under_way is not None:
            await asyncio.gather(under_way, return_exceptions=True)


def level(priority: int | str, about: str) -> int:
    """The number of a priority, given by number or name."""
    names = {level.name.lower(): int(level) for level in Priority}
    if isinstance(priority, str) and priority.lower() in names:
        return names[priority.lower()]
    if isinstance(priority, int) and not isinstance(priority, bool) and priority in names.values():
        return int(priority)
    hint = did_you_mean(str(priority), names) if isinstance(priority, str) else "1 critical, 2 high, 3 normal, 4 low"
    raise UsageError(f"{about}: there is no priority {priority} ({hint})")


def moment(at: datetime, about: str) -> float:
    """Epoch seconds of a time that says where it is meant."""
    if at.tzinfo is None or at.utcoffset() is None:
        raise UsageError(
            f"{about}: at={at.isoformat()} has no time zone (say datetime(..., tzinfo=ZoneInfo('Europe/Berlin')))"
        )
    return at.timestamp()
