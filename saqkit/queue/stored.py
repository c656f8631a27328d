"""What is stored of the jobs of a queue: looking it up, counting it, listening to its changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Literal

from redis import asyncio as aioredis
from saq.job import Job, Status
from saq.queue.redis import RedisQueue
from saq.utils import now as now_ms

from saqkit.queue import fault_sites
from saqkit.queue.job import as_dict, compact, from_dict
from saqkit.queue.leases import Claim
from saqkit.queue.line import Line
from saqkit.queue.listening import CAUGHT_UP, Listener
from saqkit.queue.payload import Payload, shown
from saqkit.queue.scripts_of_queue import call
from saqkit.spec.lifecycle import State
from saqkit.spec.topology import Priority

STATUS = {
    State.QUEUED: Status.QUEUED,
    State.SCHEDULED: Status.QUEUED,
    State.ACTIVE: Status.ACTIVE,
    State.DONE: Status.COMPLETE,
    State.DEAD: Status.FAILED,
    State.CANCELLED: Status.ABORTED,
    State.OUTGOING: Status.QUEUED,
}
"""What SAQ calls each state of a job."""

LEVELS = [int(level) for level in Priority]


class StoredJobs(RedisQueue):
    """The reading half of a queue; see `Queue`."""

    payload: Payload | None = None

    def __init__(self, redis: aioredis.Redis, name: str, *options: Any) -> None:
        super().__init__(redis, name, *options)
        self.line = Line(redis)
        if self._dump is json.dumps:
            self._dump = compact
        self.keys = [self.namespace(""), f"saq:job:{{{name}}}:"]
        self._pubsub = Listener(redis.pubsub(), prefix=self.keys[1])
        self._claims: dict[str, Claim] = {}

    def namespace(self, key: str) -> str:
        """The Redis key of a part of this queue; all of them lie in one slot of a cluster."""
        return f"saq:{{{self.name}}}:{key}"

    def key_of(self, job_key: str) -> str:
        """The Redis key of a job's hash."""
        return self.keys[1] + job_key

    def key_from(self, member: bytes) -> str:
        """The job's key of a member of one of the queue's sorted sets; delayed jobs stand there with SAQ's id."""
        return member.decode().removeprefix(self.job_id(""))

    async def run_script(self, name: str, *args: Any) -> Any:
        """Run one of the queue's scripts (see `saqkit/queue/scripts`) with the queue's keys."""
        return await call(self.line, name, self.keys, args)

    def serialize(self, job: Job) -> bytes | str:
        """What is stored of a job: not its queue and its status, which its place tells."""
        told = as_dict(job)
        told.pop("queue", None)
        told.pop("status", None)
        if self.payload is not None and told.get("kwargs"):
            told["kwargs"] = self.payload.close(job.key, job.function, told["kwargs"], job.__dict__.get("sealed", {}))
        return self._dump(told)

    def deserialize(
        self, payload: dict[str, Any] | str | bytes | None, status: Status | str | None = None
    ) -> Job | None:
        """The job of what is stored of it."""
        if not payload:
            return None
        stored = payload if isinstance(payload, dict) else self._read(payload)
        if stored.pop("queue", self.name) != self.name:
            raise ValueError(f"Job {stored} fetched by wrong queue: {self.name}")
        if status:
            stored["status"] = status
        return from_dict(stored, self)

    def _read(self, payload: str | bytes) -> dict[str, Any]:
        if self._load is json.loads and isinstance(payload, bytes):
            payload = payload.decode()  # else JSON guesses the encoding first
        stored: dict[str, Any] = self._load(payload)
        return stored

    def shown(self, job: Job) -> dict[str, Any]:
        """A job's arguments as they may be shown."""
        hidden = self.payload.hidden(job.function) if self.payload is not None else set()
        return shown(job.kwargs or {}, hidden | job.__dict__.get("sealed", {}).keys())

    def claim_of(self, job: Job) -> Claim | None:
        """This process's claim on `job`, None if it holds none."""
        return job.__dict__.get("claim") or self._claims.get(job.key)

    async def job(self, job_key: str) -> Job | None:
        """The job of a key, None if there is none."""
        return (await self.jobs([job_key]))[0]

    async def jobs(self, job_keys: Iterable[str]) -> list[Job | None]:
        """The jobs of keys, None where there is none."""
        async with self._op_sem, self.redis.pipeline(transaction=False) as pipe:
            for key in job_keys:
                pipe.hmget(self.key_of(key), ["body", "state", "att", "rel", "err", "at_t", "worker", "prio"])
            if fault_sites.armed:
                fault_sites.armed.at("look.before")
            found = await pipe.execute()
            if fault_sites.armed:
                fault_sites.armed.at("look.after")
            return [self._stored(fields) for fields in found]

    async def _get_job_by_id(self, job_id: bytes | str) -> Job | None:
        text = job_id.decode() if isinstance(job_id, bytes) else job_id
        return await self.job(self.job_key_from_id(text))

    def _stored(self, fields: list[Any]) -> Job | None:
        body, state, attempts, released, error, taken_at, worker, level = fields
        if body is None:
            return None
        job = self.deserialize(body, STATUS[State(int(state))])
        assert job is not None
        job.attempts = int(attempts or 0) + int(released or 0)  # a stop spends no attempt, but it was one
        if level and int(level) != (job.priority or Priority.NORMAL):  # it was changed while it waited
            job.priority = int(level)
        if error is not None:
            job.error = error.decode()
        claim = self._claims.get(job.key)
        if claim is not None:  # what is said of this job is said of that attempt, not of a later one
            job.__dict__["claim"] = claim
        if job.status == Status.ACTIVE:
            job.started, job.worker_id = job.started or int(float(taken_at) * 1000), worker.decode()
            if claim is not None and (claim.lost or claim.overdue()):  # so that SAQ's worker stops it
                job.status = Status.ABORTING
        return job

    # SAQ's signature; it is never changed.
    async def iter_jobs(self, statuses: list[Status] = list(Status), batch_size: int = 100) -> Any:  # noqa: B006
        """All jobs of the queue in some statuses, in no order."""
        cursor = 0
        while True:
            cursor, found = await self.redis.scan(cursor=cursor, match=self.key_of("*"), count=batch_size)
            for job in await self.jobs(key.decode()[len(self.keys[1]) :] for key in found):
                if job and job.status in statuses:
                    yield job
            if cursor <= 0:
                return

    async def count(self, kind: Literal["queued", "active", "incomplete", "scheduled", "dead"]) -> int:
        """How many jobs are queued, active, scheduled, dead, or incomplete (the first three together)."""
        names = {"queued": [f"queued:{level}" for level in LEVELS], "active": ["leases"], "scheduled": ["incomplete"],
                 "dead": ["dead"]}  # fmt: skip
        names["incomplete"] = names["queued"] + names["active"] + names["scheduled"]
        if kind not in names:
            raise ValueError(f"Can't count unknown type {kind}")
        async with self.redis.pipeline(transaction=False) as pipe:
            for name in names[kind]:
                pipe.zcard(self.namespace(name))
            if fault_sites.armed:
                fault_sites.armed.at("count.before")
            found = await pipe.execute()
            if fault_sites.armed:
                fault_sites.armed.at("count.after")
            return sum(found)

    async def info(self, jobs: bool = False, offset: int = 0, limit: int = 10) -> Any:
        """What SAQ's `info` returns: workers, counts, and (with `jobs`) the jobs that are active or next."""
        infos = [key.decode() for key in await self.redis.zrangebyscore(self._stats, now_ms(), "inf")]
        stored = await self.redis.mget(infos) if infos else []
        workers = {key.rsplit(":", 1)[1]: json.loads(value) for key, value in zip(infos, stored, strict=True) if value}
        listed: list[dict[str, Any]] = []
        if jobs:
            keys: list[bytes] = []
            for name in ["leases", *(f"queued:{level}" for level in LEVELS), "incomplete"]:
                keys += await self.redis.zrange(self.namespace(name), 0, offset + limit - 1)
            found = await self.jobs(self.key_from(key) for key in keys[offset : offset + limit])
            listed = [job.to_dict() for job in found if job is not None]
        return {
            "workers": workers,
            "name": self.name,
            "queued": await self.count("queued"),
            "active": await self.count("active"),
            "scheduled": await self.count("scheduled"),
            "jobs": listed,
        }

    async def listen(
        self, job_keys: Iterable[str], callback: Any, timeout: float | None = 10, poll_interval: float = 0.5
    ) -> None:
        """Call `callback(key, status)` when a job is told of, or was taken or ended before, until it returns true."""
        channels = [self.key_of(key) for key in job_keys]
        if not channels:
            return
        async for message in self._pubsub.listen(*channels, timeout=timeout):
            if message is CAUGHT_UP:
                found = await self.jobs(channel[len(self.keys[1]) :] for channel in channels)
                told: list[tuple[str, Status]] = [
                    (job.key, job.status) for job in found if job and job.status not in (Status.NEW, Status.QUEUED)
                ]
            else:
                told = [(message["channel"][len(self.keys[1]) :], Status[message["data"].decode().upper()])]
            for key, status in told:
                stop = callback(key, status)
                if await stop if asyncio.iscoroutine(stop) else stop:
                    return

    async def notify(self, job: Job) -> None:
        """Tell those who listen a job's status."""
        await self.redis.publish(self.key_of(job.key), job.status)
