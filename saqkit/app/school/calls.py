"""What a school's web application calls: marking, reporting, academic operations, each a job that is done once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

from saqkit.app.announcing import KEEP_KEYS_S
from saqkit.app.school.arguments import MOST_IN_BULK, MOST_MARKS, Academic, Format, Marking, Reporting
from saqkit.app.school.news import correlation_of
from saqkit.app.school.operations import Done, Operations
from saqkit.app.store import Store
from saqkit.app.store.attendance import Status
from saqkit.bus.envelope import Event
from saqkit.bus.handling import trace_now
from saqkit.bus.topics import EventTopic
from saqkit.errors import UsageError
from saqkit.queue.queue import Queue
from saqkit.queue.submitting import NewJob, Submitted, told
from saqkit.spec.base import did_you_mean
from saqkit.spec.topology import Topology

__all__ = ["ACADEMIC", "BULK", "MARK", "Options", "REPORT", "SCHOOL_TYPES", "School"]

MARK, BULK = "mark-attendance", "process-batch-attendance"
REPORT, ACADEMIC = "generate-attendance-report", "update-records"
SCHOOL_TYPES = (MARK, BULK, REPORT, ACADEMIC)


class Options(TypedDict, total=False):
    """What can be chosen for a job; what is not is as the topology describes its type.

    `key`: a tenant's second call with it is the same operation, and is done once. `priority`: critical, high, normal,
    low or 1 to 4. `delay_s`: not before so many seconds from now; `at`: not before that time. `correlation_id`: what
    the job's log lines and its events have in common with others; in a handler of an event default its.
    """

    key: str
    priority: int | str
    delay_s: float
    at: datetime
    correlation_id: str


class School:
    """Puts the jobs of a tenant's schools on the queues of `topology`; `store` knows the tenants and their people.

    Every call says who asks for it (`by`, as the audit log is to name them). `UsageError` says what of a call cannot
    be, before anything is enqueued: an institution that the tenant does not have, a pupil of somebody else;
    `DescriptionError` for a name of a tenant or an institution that cannot be in an event's envelope.
    """

    def __init__(self, topology: Topology, store: Store, queues: Mapping[str, Queue]) -> None:
        self._topology, self._store, self._queues = topology, store, queues
        self.operations = Operations(store.database)

    async def mark(
        self,
        tenant: str,
        institution: str,
        day: date | str,
        marks: Mapping[int, Status],
        *,
        by: str,
        **options: Unpack[Options],
    ) -> Submitted:
        """Mark pupils (a status by user id), at most 100: the marks are one transaction."""
        return await self._marks(MARK, MOST_MARKS, tenant, institution, day, marks, by, options)

    async def bulk_mark(
        self,
        tenant: str,
        institution: str,
        day: date | str,
        marks: Mapping[int, Status],
        *,
        by: str,
        **options: Unpack[Options],
    ) -> Submitted:
        """Mark a whole school, at most 5,000 pupils: each class is a transaction, none is marked if one pupil cannot
        be."""
        return await self._marks(BULK, MOST_IN_BULK, tenant, institution, day, marks, by, options)

    async def report(
        self,
        tenant: str,
        institution: str,
        first: date | str,
        last: date | str,
        *,
        by: str,
        format: Format = "csv",
        **options: Unpack[Options],
    ) -> Submitted:
        """Write a report of the days from `first` to `last`; `done` says where it is."""
        given = {"institution": institution, "by": by, "first": first, "last": last, "format": format}
        return await self._submit(REPORT, tenant, Reporting.parse(given), (), options)

    async def academic(
        self,
        tenant: str,
        institution: str,
        operation: str,
        data: Mapping[str, str | int],
        *,
        by: str,
        **options: Unpack[Options],
    ) -> Submitted:
        """Do one of `academic.OPERATIONS` with its data."""
        wanted = Academic.parse({"institution": institution, "by": by, "operation": operation, "data": data})
        users = [int(wanted.data["user"])] if "user" in wanted.data else []
        return await self._submit(ACADEMIC, tenant, wanted, users, options)

    async def done(self, tenant: str, key: str) -> Done | None:
        """What came of a tenant's job; None while it is not done."""
        return await self.operations.done(tenant, key)

    async def _marks(
        self,
        job_type: str,
        most: int,
        tenant: str,
        institution: str,
        day: date | str,
        marks: Mapping[int, Status],
        by: str,
        options: Options,
    ) -> Submitted:
        given = {"institution": institution, "by": by, "day": day, "marks": list(marks.items())}
        return await self._submit(job_type, tenant, Marking.parse(given, most), marks, options)

    async def _submit(
        self,
        job_type: str,
        tenant: str,
        wanted: Marking | Reporting | Academic,
        users: Any,
        options: Options,
    ) -> Submitted:
        types = self._topology.job_types
        if unknown := options.keys() - Options.__annotations__.keys():
            raise UsageError(f"{job_type}: there is no option {min(unknown)} "
                             f"({did_you_mean(min(unknown), Options.__annotations__)})")  # fmt: skip
        if job_type not in types:
            raise UsageError(f"topology {self._topology.name} has no job type {job_type} "
                             f"({did_you_mean(job_type, types)})")  # fmt: skip
        if not isinstance(tenant, str) or not tenant:
            raise UsageError(f"{job_type}: names no tenant")
        key = f"{job_type}@{quote(tenant, safe='')}:{options.get('key') or secrets.token_hex(16)}"
        trace = {"correlation_id": correlation_of(tenant, key), **trace_now()}
        if "correlation_id" in options:
            trace["correlation_id"] = options["correlation_id"]
        # Whatever becomes of the job is told by events: what cannot be in one is refused here, not when it is done.
        Event.parse({"type": EventTopic.ATTENDANCE_MARKED.value, "tenant": tenant, "institution": wanted.institution,
                     "correlation_id": trace["correlation_id"]}, job_type)  # fmt: skip
        await self._store.attendance.check(tenant, wanted.institution, users)
        spec = types[job_type]
        queue = self._queues[spec.queue]
        new = NewJob(
            job_type,
            wanted.kwargs(),
            key=key,
            priority=options.get("priority", int(spec.priority)),
            delay_s=options.get("delay_s", 0.0),
            at=options.get("at"),
            properties={
                "timeout": spec.timeout_s,
                "retries": spec.retry.max_attempts,
                "ttl": round(self._topology.queues[spec.queue].done_retention_s) or -1,
                "meta": {**trace, "tenant": tenant, "keep_key_s": KEEP_KEYS_S},
            },
        ).job()
        return told(new, await queue.enqueue(new) is not None)
