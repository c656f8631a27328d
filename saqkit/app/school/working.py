"""What a worker does with the jobs of a school that somebody has asked for; those of a measured run only take its time.

The tenant is the job's own, not one of its arguments: whatever these say, no other tenant's rows are touched. What can
never be done (a pupil who is gone, a class that there is not) becomes a dead letter at once; the rest is retried.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from saq.job import Job
from sqlalchemy import Connection

from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.event_bus import send_many_saved
from saqkit.app.location import reports_folder
from saqkit.app.school import academic
from saqkit.app.school.arguments import MOST_IN_BULK, MOST_MARKS, Academic, Marking, Reporting
from saqkit.app.school.calls import BULK, MARK, REPORT
from saqkit.app.school.news import News, correlation_of
from saqkit.app.school.operations import Apply, Operations
from saqkit.app.school.reports import report_path, write_report
from saqkit.app.store.attendance import marking
from saqkit.errors import DescriptionError, PermanentFailure, StoreError, UsageError
from saqkit.log_lines import bound
from saqkit.queue.letter import ids_of, tenant_of
from saqkit.queue.scripts_of_queue import AWAY

if TYPE_CHECKING:
    from saqkit.app.handlers import Application

__all__ = ["Worker"]

logger = logging.getLogger("saqkit")
HOST = socket.gethostname()
CLASS = 30
"""Pupils in a transaction of a bulk mark, where the topology does not say of how many a class is."""
PATIENCE_S = 5.0
"""How long publishing what a job has to tell may take; what is left then, the relay publishes."""


class Worker:
    """Does the jobs of schools in one worker process. `SAQKIT_REPORTS` of `environ` is heeded."""

    def __init__(self, application: Application, environ: Mapping[str, str] = os.environ) -> None:
        self._application, self._environ = application, environ
        self._store = application.store
        self._operations = Operations(application.store.database)

    async def handle(self, job_type: str, job: Job, given: Mapping[str, Any]) -> dict[str, Any]:
        """Do the job whose arguments are `given`, and keep the attempt's books; returns what came of it."""
        name = self._application.topology.job_types[job_type].queue
        queue = self._application.queues[name]
        if (policy := queue.policy_of(job)) is not None:
            job.retries = policy.max_attempts  # a replayed dead letter may have been told that there is no other
        claim, tenant = queue.claim_of(job), tenant_of(job.meta)
        attempt = Attempt(claim.facts if claim else {})
        attempt.begin(0, time.time() + queue.clock_offset_s)
        attempt.facts["host"] = HOST
        try:
            with bound(job=job.key, attempt=job.attempts, queue=name, tenant=tenant, **ids_of(job.meta)):
                said = await Stopwatch(attempt, self._do(job_type, job, tenant, given, attempt))
                logger.info("job %s: %s", job.key, said)
                return said
        except (UsageError, DescriptionError) as error:
            job.retries = job.attempts  # no other attempt would end otherwise: it is recorded now
            raise PermanentFailure(str(error)) from error
        finally:
            attempt.close()

    async def _do(
        self, job_type: str, job: Job, tenant: str, given: Mapping[str, Any], attempt: Attempt
    ) -> dict[str, Any]:
        if not tenant:
            raise UsageError(f"job {job.key} is of no tenant: enqueue it with saqkit.app.school.calls.School")
        if job_type == MARK:
            return await self._mark(job, tenant, Marking.parse(given, MOST_MARKS), attempt)
        if job_type == BULK:
            return await self._bulk_mark(job, tenant, Marking.parse(given, MOST_IN_BULK), attempt)
        if job_type == REPORT:
            return await self._report(job, tenant, Reporting.parse(given), attempt)
        return await self._academic(job, tenant, Academic.parse(given), attempt)

    async def _mark(self, job: Job, tenant: str, wanted: Marking, attempt: Attempt) -> dict[str, Any]:
        attempt.facts["users"] = len(wanted.marks)
        said = await self._mark_some(job, job.key, tenant, wanted, wanted.by, attempt)
        attempt.served(done=len(wanted.marks))
        return said

    async def _bulk_mark(self, job: Job, tenant: str, wanted: Marking, attempt: Attempt) -> dict[str, Any]:
        """Mark class by class. The audit log has one entry of it all, made when the last one is marked."""
        attempt.facts["users"] = len(wanted.marks)
        with attempt.database():  # before the first is marked: all of them can be, or none is
            await self._store.attendance.check(tenant, wanted.institution, wanted.marks)
        fan_out = self._application.topology.job_types[BULK].fan_out
        size = fan_out.batch_size if fan_out else CLASS
        pupils, new, corrected = sorted(wanted.marks.items()), 0, 0
        for start in range(0, len(pupils), size):
            some = Marking(wanted.institution, wanted.by, wanted.day, dict(pupils[start : start + size]))
            said = await self._mark_some(job, f"{job.key}/{start}", tenant, some, "", attempt)
            new, corrected = new + said["new"], corrected + said["corrected"]
            attempt.served(done=len(some.marks))
        result = {"day": wanted.day.isoformat(), "pupils": len(pupils), "new": new, "corrected": corrected}
        news = self._news(job, job.key, tenant, wanted.institution)

        def apply(connection: Connection) -> dict[str, Any]:
            news.of_bulk(connection, result)
            return result

        return await self._once(news, "attendance.bulk_mark", wanted, wanted.by, apply, attempt)

    async def _mark_some(
        self, job: Job, key: str, tenant: str, some: Marking, actor: str, attempt: Attempt
    ) -> dict[str, Any]:
        """Mark pupils in one transaction, in which it is noted that this is done, and who is to hear of it."""
        news = self._news(job, key, tenant, some.institution)
        put = marking(self._operations.dialect, tenant, some.institution, some.day, some.marks, by=some.by,
                      at=news.at)  # fmt: skip

        def apply(connection: Connection) -> dict[str, Any]:
            changes = put(connection)
            news.of_marks(connection, some, changes)
            return {"day": some.day.isoformat(), "pupils": len(some.marks), **asdict(changes.counted)}

        return await self._once(news, "attendance.mark", some, actor, apply, attempt)

    async def _report(self, job: Job, tenant: str, wanted: Reporting, attempt: Attempt) -> dict[str, Any]:
        """Write the file, and then note that it is done: a job that is repeated in between writes the file again."""
        with attempt.database():
            await self._store.attendance.check(tenant, wanted.institution)
            done = await self._operations.done(tenant, job.key)
            rows = await self._store.attendance.report(tenant, wanted.institution, wanted.first, wanted.last)
        path = report_path(reports_folder(self._store.database, self._environ), tenant, job.key, wanted)
        if done is None:
            await asyncio.to_thread(write_report, path, tenant, wanted, rows)
        news = self._news(job, job.key, tenant, wanted.institution)

        def apply(connection: Connection) -> dict[str, Any]:
            news.of_report(connection, wanted, path.name)
            return {"path": str(path), "pupils": len(rows)}

        return await self._once(news, "attendance.report", wanted, wanted.by, apply, attempt)

    async def _academic(self, job: Job, tenant: str, wanted: Academic, attempt: Attempt) -> dict[str, Any]:
        news = self._news(job, job.key, tenant, wanted.institution)

        def apply(connection: Connection) -> Mapping[str, Any]:
            academic.record(connection, tenant, wanted.institution, wanted.operation, wanted.data, news.at)
            news.of_academic(connection, wanted)
            return wanted.data

        attempt.facts["users"] = users = int("user" in wanted.data)
        said = await self._once(news, f"academic.{wanted.name}", wanted, wanted.by, apply, attempt)
        attempt.served(done=users)
        return said

    def _news(self, job: Job, key: str, tenant: str, institution: str) -> News:
        """What is to be told of an operation `key` of a job; all of a job has one correlation id."""
        correlation = str(job.meta.get("correlation_id") or correlation_of(tenant, job.key))
        topics = frozenset(self._application.topology.topics)
        return News(topics, tenant, institution, key, time.time(), correlation, str(job.meta.get("event_id", "")))

    async def _once(
        self, news: News, kind: str, wanted: Marking | Reporting | Academic, actor: str, apply: Apply, attempt: Attempt
    ) -> dict[str, Any]:
        """Do an operation, unless it is done, and publish what it has saved as its events."""
        with attempt.database():
            done = await self._operations.once(news.tenant, news.institution, news.key, kind, wanted.kwargs(), apply,
                                               actor=actor, at=news.at)  # fmt: skip
        if news.saved:
            application = self._application
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await send_many_saved(news.saved, application.topology, self._store, application.queues)
            except (TimeoutError, RedisError, StoreError, *AWAY) as error:  # it is done, and is not to be done again
                logger.warning("%d events of job %s are saved; the relay will publish them (%s)", len(news.saved),
                               news.key, error or f"no answer within {PATIENCE_S:g} s")  # fmt: skip
        return done.result
