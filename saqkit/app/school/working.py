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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from saq.job import Job
from sqlalchemy import Connection

from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.school import academic
from saqkit.app.school.arguments import MOST_IN_BULK, MOST_MARKS, Academic, Marking, Reporting
from saqkit.app.school.calls import ACADEMIC, BULK, MARK, REPORT
from saqkit.app.school.operations import Operations
from saqkit.app.school.reports import report_path, reports_folder, write_report
from saqkit.app.store.attendance import marking
from saqkit.errors import PermanentFailure, UsageError
from saqkit.log_lines import bound
from saqkit.queue.letter import tenant_of

if TYPE_CHECKING:
    from saqkit.app.handlers import Application

__all__ = ["Worker", "or_school"]

logger = logging.getLogger("saqkit")
HOST = socket.gethostname()
CLASS = 30
"""Pupils in a transaction of a bulk mark, where the topology does not say of how many a class is."""
Handler = Callable[..., Awaitable[Any]]


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
            with bound(job=job.key, attempt=job.attempts, queue=name, tenant=tenant):
                said = await Stopwatch(attempt, self._do(job_type, job.key, tenant, given, attempt))
                logger.info("job %s: %s", job.key, said)
                return said
        except UsageError as error:
            job.retries = job.attempts  # no other attempt would end otherwise: it is recorded now
            raise PermanentFailure(str(error)) from error
        finally:
            attempt.close()

    async def _do(
        self, job_type: str, key: str, tenant: str, given: Mapping[str, Any], attempt: Attempt
    ) -> dict[str, Any]:
        if not tenant:
            raise UsageError(f"job {key} is of no tenant: enqueue it with saqkit.app.school.calls.School")
        if job_type == MARK:
            return await self._mark(key, tenant, Marking.parse(given, MOST_MARKS), attempt)
        if job_type == BULK:
            return await self._bulk_mark(key, tenant, Marking.parse(given, MOST_IN_BULK), attempt)
        if job_type == REPORT:
            return await self._report(key, tenant, Reporting.parse(given), attempt)
        return await self._academic(key, tenant, Academic.parse(given), attempt)

    async def _mark(self, key: str, tenant: str, wanted: Marking, attempt: Attempt) -> dict[str, Any]:
        attempt.facts["users"] = len(wanted.marks)
        said = await self._mark_some(key, tenant, wanted, wanted.by, attempt)
        attempt.served(done=len(wanted.marks))
        return said

    async def _bulk_mark(self, key: str, tenant: str, wanted: Marking, attempt: Attempt) -> dict[str, Any]:
        """Mark class by class. The audit log has one entry of it all, made when the last one is marked."""
        attempt.facts["users"] = len(wanted.marks)
        with attempt.database():  # before the first is marked: all of them can be, or none is
            await self._store.attendance.check(tenant, wanted.institution, wanted.marks)
        fan_out = self._application.topology.job_types[BULK].fan_out
        size = fan_out.batch_size if fan_out else CLASS
        pupils, new, corrected = sorted(wanted.marks.items()), 0, 0
        for start in range(0, len(pupils), size):
            some = Marking(wanted.institution, wanted.by, wanted.day, dict(pupils[start : start + size]))
            said = await self._mark_some(f"{key}/{start}", tenant, some, "", attempt)
            new, corrected = new + said["new"], corrected + said["corrected"]
            attempt.served(done=len(some.marks))
        result = {"day": wanted.day.isoformat(), "pupils": len(pupils), "new": new, "corrected": corrected}
        with attempt.database():
            done = await self._operations.once(tenant, wanted.institution, key, "attendance.bulk_mark", wanted.kwargs(),
                                               lambda _: result, actor=wanted.by)  # fmt: skip
        return done.result

    async def _mark_some(self, key: str, tenant: str, some: Marking, actor: str, attempt: Attempt) -> dict[str, Any]:
        """Mark pupils in one transaction, in which it is noted that this is done."""
        put = marking(self._operations.dialect, tenant, some.institution, some.day, some.marks, by=some.by,
                      at=time.time())  # fmt: skip

        def apply(connection: Connection) -> dict[str, Any]:
            return {"day": some.day.isoformat(), "pupils": len(some.marks), **asdict(put(connection))}

        with attempt.database():
            done = await self._operations.once(tenant, some.institution, key, "attendance.mark", some.kwargs(), apply,
                                               actor=actor)  # fmt: skip
        return done.result

    async def _report(self, key: str, tenant: str, wanted: Reporting, attempt: Attempt) -> dict[str, Any]:
        """Write the file, and then note that it is done: a job that is repeated in between writes the file again."""
        with attempt.database():
            await self._store.attendance.check(tenant, wanted.institution)
            done = await self._operations.done(tenant, key)
            rows = await self._store.attendance.report(tenant, wanted.institution, wanted.first, wanted.last)
        if done is None:
            path = report_path(reports_folder(self._environ), tenant, key, wanted)
            await asyncio.to_thread(write_report, path, tenant, wanted, rows)
            result = {"path": str(path), "pupils": len(rows)}
        else:
            result = done.result
        with attempt.database():
            noted = await self._operations.once(tenant, wanted.institution, key, "attendance.report", wanted.kwargs(),
                                                lambda _: result, actor=wanted.by)  # fmt: skip
        return noted.result

    async def _academic(self, key: str, tenant: str, wanted: Academic, attempt: Attempt) -> dict[str, Any]:
        at, place = time.time(), (tenant, wanted.institution)
        leave = partial(academic.record, tenant=tenant, institution=wanted.institution, operation=wanted.operation,
                        data=wanted.data, at=at)  # fmt: skip

        def apply(connection: Connection) -> Mapping[str, Any]:
            leave(connection)
            return wanted.data

        attempt.facts["users"] = users = int("user" in wanted.data)
        with attempt.database():
            done = await self._operations.once(*place, key, f"academic.{wanted.name}", wanted.kwargs(), apply,
                                               actor=wanted.by, at=at)  # fmt: skip
        attempt.served(done=users)
        return done.result


def or_school(job_type: str, otherwise: Handler) -> Handler:
    """The function of a job type: for one of a school's, jobs that are not of an event are done by the `Worker`."""
    if job_type not in (MARK, BULK, REPORT, ACADEMIC):
        return otherwise

    async def handle(ctx: dict[str, Any], **given: Any) -> Any:
        if "event" in given:
            return await otherwise(ctx, **given)
        return await ctx["application"].school.handle(job_type, ctx["job"], given)

    handle.__qualname__ = handle.__name__ = job_type
    return handle
