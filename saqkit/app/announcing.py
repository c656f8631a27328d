"""Announcing an event: it is saved; its jobs are enqueued at once, or by the relay when the broker is back."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

from redis.exceptions import RedisError
from saq.job import Job

from saqkit.app.audience import Audience
from saqkit.app.event_bus import is_published, send_saved
from saqkit.app.store import EventRow, Store
from saqkit.bus.handling import trace_now
from saqkit.errors import DescriptionError
from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.base import did_you_mean
from saqkit.spec.topology import Entry, JobType, Priority, Topology

logger = logging.getLogger("saqkit")

KEEP_KEYS_S = 86_400.0
"""A batch's key stays taken for a day after it is done, so a fan-out that is repeated doubles nobody."""

_DIRECT = "job:"


@dataclass(frozen=True)
class Announced:
    """An announced event: `elapsed_ms` is what the caller waited, `enqueued` whether its jobs are queued already."""

    event: int
    new: bool
    enqueued: bool
    elapsed_ms: float


def topic_of(entry: Entry) -> str:
    """How an entry is written in an event's row: `TOPIC` or `job:JOB_TYPE`, with `@PRIORITY` where it has its own."""
    target = entry.topic if entry.topic is not None else f"{_DIRECT}{entry.job_type}"
    return f"{target}@{entry.priority.name.lower()}" if entry.priority is not None else target


class Announcer:
    """Takes events in, and starts their jobs."""

    def __init__(self, topology: Topology, store: Store, queues: Mapping[str, Queue]) -> None:
        self.topology, self.store, self.queues = topology, store, queues

    async def announce(
        self,
        *,
        title: str,
        body: str = "",
        entry: Entry | None = None,
        audience: Audience | None = None,
        tenant: str = "",
        institution: str = "",
        key: str | None = None,
        patience_s: float = 0.05,
    ) -> Announced:
        """Save an event with its outbox row, and enqueue its first jobs if the broker takes them within `patience_s`.

        It takes the same time for any audience. With the broker away the event is saved all the same and the workers'
        relay enqueues it later. A `key` that was used before returns the first event. `institution`: it is for those
        of the audience who belong to that one of the tenant's; `UsageError`, and nothing is saved, if there is none.
        """
        started = time.perf_counter()
        entry, audience = entry or self.topology.entry[0], audience or Audience()
        tenant = tenant or entry.tenant
        if institution:
            audience = replace(audience, tenant=audience.tenant or tenant, institution=institution)
        saved = await self.store.announce(
            title=title, body=body, topic=topic_of(entry), audience=audience, created_at=time.time(), tenant=tenant,
            key=key,
        )  # fmt: skip
        enqueued = saved.new and await self.deliver_soon(saved.event_id, patience_s)
        return Announced(saved.event_id, saved.new, enqueued, (time.perf_counter() - started) * 1000)

    async def deliver_soon(self, event_id: int, patience_s: float) -> bool:
        """Deliver an event if the broker takes it within `patience_s`; else it is left to the relay."""
        try:
            async with asyncio.timeout(patience_s):
                await self.deliver(event_id)
        except (TimeoutError, RedisError, *AWAY) as error:
            reason = str(error) or f"no answer within {patience_s:g} s"
            logger.warning("event %d is saved; the relay will enqueue it (%s)", event_id, reason,
                           extra={"event": event_id})  # fmt: skip
            return False
        return True

    async def deliver(self, event_id: int, *, missing: bool = False) -> None:
        """Enqueue what an event starts, and mark its outbox row; doing it again changes nothing.

        `missing`: only what the broker does not know, so that a dead letter is not brought back to life.
        """
        event = await self.store.event(event_id)
        assert event is not None
        if is_published(event):
            await send_saved(event, self.topology, self.queues)
        else:
            entry = self._entry(event)
            for job_type in self.topology.starts(entry):
                await self._start(event, entry, job_type, missing)
        await self.store.mark_delivered([event_id])

    def _entry(self, event: EventRow) -> Entry:
        target, _, priority = event.topic.partition("@")
        direct = target.startswith(_DIRECT)
        name, kind = target.removeprefix(_DIRECT), "job type" if direct else "topic"
        known = self.topology.job_types if direct else self.topology.topics
        if name not in known:
            raise DescriptionError(f'event {event.id} is for {kind} "{name}", which topology {self.topology.name} does '
                                   "not have", value=name, hint=did_you_mean(name, known))  # fmt: skip
        level = Priority[priority.upper()] if priority else None
        return Entry(job_type=name, priority=level) if direct else Entry(topic=name, priority=level)

    async def _start(self, event: EventRow, entry: Entry, job_type: str, missing: bool) -> None:
        spec = self.topology.job_types[job_type]
        queue = self.queues[spec.queue]
        priority = entry.priority or spec.priority

        async def enqueue(jobs: list[Job]) -> None:
            if missing:
                known = await queue.jobs(job.key for job in jobs)
                jobs = [job for job, stored in zip(jobs, known, strict=True) if stored is None]
                if jobs:
                    logger.warning("event %d: the broker has lost %d of its jobs, enqueued again", event.id, len(jobs),
                                   extra={"event": event.id})  # fmt: skip
            await queue.enqueue_many(jobs)

        if spec.fan_out is not None or event.audience.nobody:
            await enqueue([new_job(self.topology, job_type, f"{job_type}:{event.id}", event, priority=int(priority))])
            return
        async for page in self._pages(event.audience, spec):
            await enqueue(
                [
                    new_job(self.topology, job_type, f"{job_type}:{event.id}:{user}", event, [user], int(priority))
                    for user in page
                ]
            )

    async def _pages(self, audience: Audience, spec: JobType) -> AsyncIterator[list[int]]:
        """Ids of an audience, at most 1000 at once.

        Users who are named are not looked up: whoever has checked out is not to be missed because a replica is behind.
        Their job sees who is gone, and by its order whom a payment is of; a role or a tenant only the audience tells.
        """
        if audience.users and (spec.work == "payment" or not (audience.roles or audience.tenant)):
            yield sorted(set(audience.users))
            return
        after = 0
        while page := await self.store.audience_page(audience, after, 1000):
            yield page
            after = page[-1]


def new_job(
    topology: Topology,
    job_type: str,
    key: str,
    event: EventRow,
    users: list[int] | None = None,
    priority: int | None = None,
    parent: str = "",
) -> Job:
    """A job of the topology that serves `event`, for `users` (none: a fan-out). Ids only, never whole users."""
    spec = topology.job_types[job_type]
    meta = {**trace_now(), "event": event.id, "event_at": event.created_at, "parent": parent, "tenant": event.tenant,
            "keep_key_s": KEEP_KEYS_S}  # fmt: skip
    return Job(
        function=job_type,
        key=key,
        kwargs={"event": event.id} if users is None else {"event": event.id, "users": users},
        timeout=spec.timeout_s,  # type: ignore[arg-type]  # SAQ says int, and compares it as the number it is
        retries=spec.retry.max_attempts,
        ttl=round(topology.queues[spec.queue].done_retention_s) or -1,
        priority=int(priority or spec.priority),
        meta=meta,
    )


class Relay:
    """Delivers what was announced while the broker was away. One leader among the workers, by a lease in the broker.

    It also delivers again what the broker had and lost: a server whose power fails forgets its last second (with
    `appendfsync everysec`). So whenever the server has been started anew, the events that were delivered since the
    relay last looked are looked for. The note of when that was lies in the broker too: it is forgotten together with
    what came after it, and never before.
    """

    EVERY_S = 0.5
    LEASE_S = 5
    LOOK_EVERY_S = 5.0
    SKEW_S = 120.0
    """How far the clocks of those who announce and of the relay may be apart."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._queue = next(iter(announcer.queues.values()))
        self._name = f"{os.getpid()}.{id(self)}"
        self._looked = float("-inf")

    async def run(self) -> None:
        """Deliver for ever; while the broker or the database is away, wait."""
        pause_s = self.EVERY_S
        while True:
            await asyncio.sleep(pause_s)
            heed_cancellation()
            try:
                if await self._leads():
                    for event_id in await self._announcer.store.undelivered():
                        await self._deliver(event_id)
                    if time.monotonic() - self._looked > self.LOOK_EVERY_S:
                        await self._look()
                        self._looked = time.monotonic()
                pause_s = self.EVERY_S
            except AWAY:
                pause_s = min(2.0, pause_s * 2)
                self._looked = float("-inf")
            except Exception:
                logger.exception("the relay cannot look for events")
                pause_s = min(10.0, pause_s * 2)

    async def _look(self) -> None:
        """Deliver again what a server that was started anew has lost."""
        redis, note, now = self._queue.redis, self._queue.namespace("relayed"), time.time()
        run = (await redis.info("server"))["run_id"]
        known, last = await redis.hmget(note, ["run", "at"])  # type: ignore[misc]  # typed for both clients
        if known is None or known.decode() != run:
            for event_id in await self._announcer.store.delivered_since(float(last or now) - self.SKEW_S):
                await self._deliver(event_id, missing=True)
        await redis.hset(note, mapping={"run": run, "at": now})  # type: ignore[misc]  # typed for both clients

    async def _deliver(self, event_id: int, *, missing: bool = False) -> None:
        try:
            await self._announcer.deliver(event_id, missing=missing)
        except AWAY:
            raise
        except Exception:  # the events behind it are not to wait for this one
            logger.exception("the relay cannot deliver event %d", event_id, extra={"event": event_id})

    async def _leads(self) -> bool:
        redis, key = self._queue.redis, self._queue.namespace("relay")
        if await redis.set(key, self._name, nx=True, ex=self.LEASE_S):
            return True
        if await redis.get(key) == self._name.encode():
            await redis.expire(key, self.LEASE_S)
            return True
        return False
