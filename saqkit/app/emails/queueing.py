"""Enqueueing emails: one, one at a time of day, or the same to many; checked before anything is enqueued."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Self, TypedDict, Unpack
from urllib.parse import quote

from saqkit.app.announcing import KEEP_KEYS_S
from saqkit.app.emails.catalogue import EmailType, Value, checked_data, checked_recipient, email_type
from saqkit.app.emails.secrecy import mark_secrets
from saqkit.errors import UsageError
from saqkit.queue.building import build_queues
from saqkit.queue.enqueueing import CHUNK
from saqkit.queue.queue import Queue
from saqkit.queue.replaying import chunks
from saqkit.queue.submitting import NewJob, Submitted, told
from saqkit.spec.backoff import Retry
from saqkit.spec.base import did_you_mean
from saqkit.spec.topology import JobType, Topology

__all__ = ["EmailQueue", "Options"]

_LETTERS = str.maketrans("0123456789", "ghijklmnop")
"""What is made up has no digits: a job that happened to hold a code that is to be sealed would be refused."""


class Options(TypedDict, total=False):
    """What can be chosen for a job; what is not is as the topology describes its type.

    `priority`: critical, high, normal, low or 1 to 4. `retry`: its own attempts and delays. `delay_s`: not before so
    many seconds from now. `key`: a second call with it within a day is not accepted, of the same tenant if there is
    one. `tenant`: whom it belongs to; a user who is named by an id must be one of that tenant. `trace`: what
    `Bus.trace()` says in the handler of an event, so that the ids of the event go with the email.
    """

    priority: int | str
    retry: Retry
    delay_s: float
    key: str
    tenant: str
    trace: Mapping[str, object]


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
        return await self._submit(name, to, data, options)

    async def schedule_email(
        self, name: str, to: str | int, data: Mapping[str, Value], at: datetime, **options: Unpack[Options]
    ) -> Submitted:
        """The same, sent not before `at`, a datetime with its time zone; one that has passed is now."""
        return await self._submit(name, to, data, options, at)

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
        of their own. Other work goes on between chunks, also while recipients are checked.
        """
        if chunk < 1:
            raise UsageError(f"email {name}: chunk {chunk} (give 1 or more)")
        kind, spec, given = self._checked(name, data, options)
        self._job(kind, spec, "", given, None, options).job()  # what is wrong for all is told before anybody is checked
        whom: dict[str | int, None] = {}
        for some in chunks(recipients, min(chunk, CHUNK)):
            whom.update(dict.fromkeys([checked_recipient(kind, to) for to in some]))
            await asyncio.sleep(0)
        jobs = (self._job(kind, spec, to, given, None, options, many=True) for to in whom)
        return [answer async for answer in self.queues[spec.queue].submit_many(jobs, chunk)]

    async def _submit(
        self, name: str, to: str | int, data: Mapping[str, Value], options: Options, at: datetime | None = None
    ) -> Submitted:
        kind, spec, given = self._checked(name, data, options)
        job = self._job(kind, spec, checked_recipient(kind, to), given, at, options).job()
        return told(job, await self.queues[spec.queue].enqueue(job) is not None)

    def _checked(
        self, name: str, data: Mapping[str, Value], options: Options
    ) -> tuple[EmailType, JobType, dict[str, Value]]:
        """What a call is about, whoever its recipients are."""
        if unknown := options.keys() - Options.__annotations__.keys():
            hint = did_you_mean(min(unknown), Options.__annotations__)
            raise UsageError(f"email {name}: there is no option {min(unknown)} ({hint})")
        kind = email_type(name)
        return kind, self._spec(kind), checked_data(kind, data)

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
        many: bool = False,
    ) -> NewJob:
        key, whose, made_up = options.get("key"), kind.name, secrets.token_hex(16).translate(_LETTERS)
        chosen = f"{key}:{to}" if key and many else key or made_up
        # A key that was chosen is free again one day: what is made up tells the emails apart then.
        meta: dict[str, object] = {**options.get("trace", {})}
        meta |= {"keep_key_s": KEEP_KEYS_S, "nonce": made_up} if key else {}
        if tenant := options.get("tenant"):
            meta["tenant"] = tenant
            whose += f"@{quote(str(tenant), safe='')}" if key else ""
        if (retry := options.get("retry")) is not None:
            if not isinstance(retry, Retry):
                raise UsageError(
                    f"email {kind.name}: retry is a {type(retry).__name__} (give saqkit.spec.backoff.Retry)"
                )
            meta["retry_policy"] = retry.to_dict()
        return NewJob(
            kind.name,
            {"to": to, **data},
            key=f"{whose}:{chosen}",
            priority=options.get("priority", int(spec.priority)),
            delay_s=options.get("delay_s", 0.0),
            at=at,
            properties={
                "timeout": spec.timeout_s,
                "ttl": round(self.topology.queues[spec.queue].done_retention_s) or -1,
                "meta": meta,
            },
        )
