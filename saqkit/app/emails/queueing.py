"""Enqueueing emails: one, one at a time of day, or the same to many; checked before anything is enqueued."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Self, TypedDict, Unpack

from saqkit.app.announcing import KEEP_KEYS_S
from saqkit.app.emails.catalogue import EmailType, Value, checked_data, checked_recipient, email_type
from saqkit.app.emails.secrecy import mark_secrets
from saqkit.errors import UsageError
from saqkit.queue.building import build_queues
from saqkit.queue.enqueueing import CHUNK
from saqkit.queue.queue import Queue
from saqkit.queue.submitting import NewJob, Submitted, told
from saqkit.spec.backoff import Retry
from saqkit.spec.base import did_you_mean
from saqkit.spec.topology import JobType, Topology

__all__ = ["EmailQueue", "Options"]

_LETTERS = str.maketrans("0123456789", "ghijklmnop")
"""A made-up key has no digits: one that happened to hold a code that is to be sealed would be refused."""


class Options(TypedDict, total=False):
    """What can be chosen for a job; what is not is as the topology describes its type.

    `priority`: critical, high, normal, low or 1 to 4. `retry`: its own attempts and delays. `delay_s`: not before so
    many seconds from now. `key`: a second call with it within a day is not accepted. `tenant`: whom it belongs to;
    a user who is named by an id must be one of that tenant.
    """

    priority: int | str
    retry: Retry
    delay_s: float
    key: str
    tenant: str


class EmailQueue:
    """Puts emails on the queues that `topology` names; a worker of it sends them.

    An address, or the id of a user whom the worker looks up, is whom one is `to`; `data` are ids and small values (see
    `catalogue`). `UsageError` says what of a call cannot be, before anything is enqueued.
    """

    def __init__(self, topology: Topology, queues: Mapping[str, Queue]) -> None:
        self.topology, self.queues = topology, queues
        mark_secrets(topology, queues)

    @classmethod
    @asynccontextmanager
    async def open(cls, topology: Topology, url: str) -> AsyncIterator[Self]:
        """With queues of its own on the broker at `url`, disconnected at the end of the block."""
        queues = build_queues(topology, url)
        try:
            yield cls(topology, queues)
        finally:
            for queue in queues.values():
                await queue.disconnect()

    async def queue_email(
        self, name: str, to: str | int, data: Mapping[str, Value], **options: Unpack[Options]
    ) -> Submitted:
        """Enqueue an email of type `name`; says its job's key, and whether it was accepted."""
        return await self._submit(*self._jobs(name, [to], data, options))

    async def schedule_email(
        self, name: str, to: str | int, data: Mapping[str, Value], at: datetime, **options: Unpack[Options]
    ) -> Submitted:
        """The same, sent not before `at`, a datetime with its time zone; one that has passed is now."""
        return await self._submit(*self._jobs(name, [to], data, options, at))

    async def queue_bulk_emails(
        self,
        name: str,
        recipients: Iterable[str | int],
        data: Mapping[str, Value],
        *,
        chunk: int = CHUNK,
        **options: Unpack[Options],
    ) -> list[Submitted]:
        """Enqueue an email to each of `recipients`, `chunk` of them in a round trip; answers in their order.

        Who is named twice gets one. With a `key`, a call that was cut short can be repeated: each recipient has a key
        of their own.
        """
        if chunk < 1:
            raise UsageError(f"email {name}: chunk {chunk} (give 1 or more)")
        queue, jobs = self._jobs(name, recipients, data, options, many=True)
        return [answer async for answer in queue.submit_many(jobs, chunk)]

    async def _submit(self, queue: Queue, jobs: list[NewJob]) -> Submitted:
        job = jobs[0].job()
        return told(job, await queue.enqueue(job) is not None)

    def _jobs(
        self,
        name: str,
        recipients: Iterable[str | int],
        data: Mapping[str, Value],
        options: Options,
        at: datetime | None = None,
        many: bool = False,
    ) -> tuple[Queue, list[NewJob]]:
        """The jobs of a call, and the queue that they are for; everything about them is checked."""
        if unknown := options.keys() - Options.__annotations__.keys():
            hint = did_you_mean(min(unknown), Options.__annotations__)
            raise UsageError(f"email {name}: there is no option {min(unknown)} ({hint})")
        kind = email_type(name)
        spec, given = self._spec(kind), checked_data(kind, data)
        whom = dict.fromkeys([checked_recipient(kind, to) for to in recipients])
        return self.queues[spec.queue], [self._job(kind, spec, to, given, at, options, many) for to in whom]

    def _spec(self, kind: EmailType) -> JobType:
        types = self.topology.job_types
        if kind.name not in types:
            raise UsageError(f"email {kind.name}: topology {self.topology.name} has no job type of that name "
                             f"({did_you_mean(kind.name, types)})")  # fmt: skip
        if types[kind.name].per_user.provider is None:
            raise UsageError(f"email {kind.name}: its job type has no per_user.provider to send by")
        return types[kind.name]

    def _job(
        self,
        kind: EmailType,
        spec: JobType,
        to: str | int,
        data: Mapping[str, Value],
        at: datetime | None,
        options: Options,
        many: bool,
    ) -> NewJob:
        key = options.get("key")
        chosen = f"{key}:{to}" if key and many else key or secrets.token_hex(16).translate(_LETTERS)
        meta: dict[str, object] = {"keep_key_s": KEEP_KEYS_S} if key else {}
        if tenant := options.get("tenant"):
            meta["tenant"] = tenant
        if (retry := options.get("retry")) is not None:
            if not isinstance(retry, Retry):
                raise UsageError(
                    f"email {kind.name}: retry is a {type(retry).__name__} (give saqkit.spec.backoff.Retry)"
                )
            meta["retry_policy"] = retry.to_dict()
        new = NewJob(
            kind.name,
            {"to": to, **data},
            key=f"{kind.name}:{chosen}",
            priority=options.get("priority", int(spec.priority)),
            delay_s=options.get("delay_s", 0.0),
            at=at,
            properties={
                "timeout": spec.timeout_s,
                "ttl": round(self.topology.queues[spec.queue].done_retention_s) or -1,
                "meta": meta,
            },
        )
        new.job()  # what is wrong with its priority or time is told before anything is enqueued
        return new
