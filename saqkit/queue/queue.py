"""`Queue`: a drop-in for `saq.queue.redis.RedisQueue` with priorities, exact backoff, rate limits, dead letters and leases."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Literal, Self

from redis import asyncio as aioredis
from saq.job import Job, Status
from saq.queue.redis import PubSubMultiplexer, RedisQueue
from saq.utils import now as now_ms

from saqkit.errors import BrokerError, UsageError
from saqkit.queue.leases import Claim, LeaseKeeper
from saqkit.queue.scripts_of_queue import AWAY, Backoff, Flusher, call
from saqkit.queue.taking import Taker
from saqkit.spec.backoff import Retry
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.lifecycle import POISON_CRASHES, State
from saqkit.spec.topology import Priority, RateLimit

logger = logging.getLogger("saqkit")

STATUS = {
    State.QUEUED: Status.QUEUED,
    State.SCHEDULED: Status.QUEUED,
    State.ACTIVE: Status.ACTIVE,
    State.DONE: Status.COMPLETE,
    State.DEAD: Status.FAILED,
    State.CANCELLED: Status.ABORTED,
}
"""What SAQ calls each state of a job."""

LEVELS = [int(level) for level in Priority]


class Queue(RedisQueue):
    """A queue on Redis or Valkey.

    Args beyond `RedisQueue`'s:
        rate_limit: at most so many jobs (or users) are taken in any window, over all processes; default none
        policies: retry policy by function name; a function without one keeps SAQ's `retries` and `retry_delay`
        lease_s: a claim expires this long after its last renewal (default 5)
        sweep_s: how often expired claims are looked for (default 5)
        tick_s: delayed jobs and retries wake on this grid (default 0.2)
        dead_retention_s: how long dead letters are kept (default 7 days)
        seed: for jitter, the same in the model

    A job's `priority` is 1 critical, 2 high, 3 normal, 4 low; 0 (SAQ's default) counts as normal.
    """

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:  # type: ignore[override]
        """A queue on the server at `url`: redis://, rediss:// or unix://."""
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise BrokerError(f"{url.split('://')[0]}:// is no address of a Redis or Valkey server: give redis://, "
                              "rediss:// or unix:// (a queue needs blocking calls and scripts)")  # fmt: skip
        timeouts: dict[str, Any] = {"socket_timeout": 15, "socket_connect_timeout": 5}
        if not url.startswith("unix://"):
            timeouts["socket_keepalive"] = True
        return cls(aioredis.from_url(url, **timeouts), **kwargs)  # type: ignore[no-untyped-call]

    def __init__(
        self,
        redis: aioredis.Redis,
        name: str = "default",
        dump: Any = None,
        load: Any = None,
        max_concurrent_ops: int = 20,
        swept_error_message: str | None = None,
        *,
        rate_limit: RateLimit | None = None,
        policies: Mapping[str, Retry] | None = None,
        lease_s: float = 5.0,
        sweep_s: float = 5.0,
        tick_s: float = 0.2,
        dead_retention_s: float = 7 * 86_400.0,
        seed: int = 0,
    ) -> None:
        super().__init__(redis, name, dump, load, max_concurrent_ops, swept_error_message)  # type: ignore[arg-type]
        self.rate_limit, self.policies, self.seed = rate_limit, dict(policies or {}), seed
        self.lease_s, self.sweep_s, self.tick_s, self.dead_retention_s = lease_s, sweep_s, tick_s, dead_retention_s
        self.keys = [self.namespace(""), f"saq:job:{{{name}}}:"]
        self.worker_name = f"{socket.gethostname()}.{os.getpid()}"
        self._pubsub = PubSubMultiplexer(redis.pubsub(), prefix=self.keys[1])  # type: ignore[arg-type,no-untyped-call]
        self._flusher = Flusher(redis, self.keys)
        self._taker = Taker(self)
        self._leases: LeaseKeeper | None = None
        self._claims: dict[str, Claim] = {}
        self._upkeep: asyncio.Task[None] | None = None

    def namespace(self, key: str) -> str:
        """The Redis key of a part of this queue; all of them lie in one slot of a cluster."""
        return f"saq:{{{self.name}}}:{key}"

    def key_of(self, job_key: str) -> str:
        """The Redis key of a job's hash."""
        return self.keys[1] + job_key

    async def run_script(self, name: str, *args: Any) -> Any:
        """Run one of the queue's scripts (see `saqkit/queue/scripts`) with the queue's keys."""
        return await call(self.redis, name, self.keys, args)

    # --- enqueue ---------------------------------------------------------------------------------------------------

    async def _enqueue(self, job: Job) -> Job | None:
        async with self._op_sem:
            accepted = (await self._enqueue_all([job]))[0]
        if not accepted:
            return None
        if logger.isEnabledFor(logging.INFO):
            logger.info("Enqueued %s", job.info())
        return job

    async def enqueue_many(self, jobs: Iterable[Job], chunk: int = 500) -> list[bool]:
        """Enqueue jobs, `chunk` of them in a round trip; returns for each whether it was accepted.

        A job is not accepted while a job of its key lives, or within the time its key stays taken.
        """
        accepted: list[bool] = []
        pending: list[Job] = []
        for job in jobs:
            if job.queue is not None and job.queue.name != self.name:
                raise ValueError(f"Job {job} registered to a different queue")
            job.queue, job.queued, job.status = self, now_ms(), Status.QUEUED
            await self._before_enqueue(job)
            pending.append(job)
            if len(pending) == chunk:
                accepted += await self._enqueue_all(pending)
                pending = []
        if pending:
            accepted += await self._enqueue_all(pending)
        return accepted

    async def _enqueue_all(self, jobs: list[Job]) -> list[bool]:
        args: list[Any] = [self.tick_s]
        for job in jobs:
            level = job.priority or int(Priority.NORMAL)
            if level not in LEVELS:
                raise UsageError(f"priority {job.priority} of job {job.key}: 1 critical, 2 high, 3 normal, 4 low")
            if job.function in self.policies:
                job.retries = self.policies[job.function].max_attempts
            keep = float(job.meta.get("keep_key_s", 0))
            users = len((job.kwargs or {}).get("users", ()))
            args += [job.key, self.serialize(job), level, float(job.scheduled or 0), users, keep]
        return [bool(said) for said in await self.run_script("enqueue", *args)]

    # --- take ------------------------------------------------------------------------------------------------------

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:
        """Take the next job, waiting at most `timeout` seconds (0: until there is one); None if there was none."""
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.create_task(self._look_after(), name="saqkit-upkeep")
        return await self._taker.take(timeout)

    def claimed(self, row: list[Any], taken_at: float) -> Job:
        """The job of a row of `take.lua`, claimed by this process: its lease is renewed from now on."""
        key, token, attempt, crashes, priority, first_queued, ready, body = row
        job = self.deserialize(body)
        assert job is not None
        claim = Claim(key.decode(), token.decode(), attempt, crashes, priority, taken_at)
        if job.timeout:
            claim.until = time.monotonic() + job.timeout + self.lease_s
        claim.facts.update(queued_at=float(first_queued), ready_at=float(ready))
        job.attempts, job.status = attempt - 1, Status.ACTIVE  # SAQ's worker counts this execution itself
        self._claims[claim.key] = claim
        job.__dict__["claim"] = claim
        if self._leases is None:
            self._leases = LeaseKeeper(self.redis, self.keys, self.lease_s)
        self._leases.add(claim)
        return job

    def claim_of(self, job: Job) -> Claim | None:
        """This process's claim on `job`, None if it holds none."""
        return job.__dict__.get("claim") or self._claims.get(job.key)

    @property
    def clock_offset_s(self) -> float:
        """Seconds to add to this process's `time.time()` to get the server's clock."""
        return self._taker.clock_offset_s

    # --- end of an attempt -----------------------------------------------------------------------------------------

    async def _finish(self, job: Job, status: Status, *, result: Any = None, error: str | None = None) -> None:
        claim = self.claim_of(job)
        if claim is None:
            return  # nobody's claim: only the holder ends a job (contract C5)
        if status == Status.COMPLETE:
            said = self._flusher.say("finish", (), (claim.key, claim.token, self._body(job), job.ttl, self.row(job)))
        elif status == Status.ABORTED:
            ended = (claim.key, error or "aborted", job.ttl, claim.token, self.row(job))
            said = self._flusher.say("cancel", (), ended)
        else:
            said = self._flusher.say("bury", (), (claim.key, claim.token, self._body(job), self.row(job)))
        await self._end(claim, said)

    async def _retry(self, job: Job, error: str | None) -> None:
        claim = self.claim_of(job)
        if claim is None:
            return
        if error == "cancelled":  # what SAQ's worker says when it is told to stop: that is no failure of the job
            job.attempts -= 1
            await self._end(claim, self._flusher.say("release", (), (claim.key, claim.token, self.row(job))))
            return
        job.scheduled = 0
        row = (claim.key, claim.token, self._body(job), self.delay_s(job), self.row(job))
        await self._end(claim, self._flusher.say("retry", (self.tick_s,), row))

    async def release(self, job: Job) -> None:
        """Give a taken job back to its old place in the line; the attempt is not counted."""
        claim = self.claim_of(job)
        if claim is not None:
            await self._end(claim, self._flusher.say("release", (), (claim.key, claim.token, self.row(job))))

    async def _end(self, claim: Claim, said: Awaitable[int]) -> None:
        try:
            if not await said:
                logger.warning("job %s: the claim of this worker was no longer held, its result is refused", claim.key)
        finally:
            if self._leases is not None:
                self._leases.discard(claim)
            if self._claims.get(claim.key) is claim:
                del self._claims[claim.key]

    def delay_s(self, job: Job) -> float:
        """How long `job` waits before its next attempt, in seconds."""
        policy = self.policies.get(job.function)
        if policy is None:
            return job.next_retry_delay()
        users = (job.kwargs or {}).get("users") or (0,)
        event = int(job.meta.get("event") or 0)
        return policy.delay_after(job.attempts, uniform(self.seed, Stream.JITTER, event, users[0], job.attempts))

    def _body(self, job: Job) -> bytes | str:
        try:
            return self.serialize(job)
        except (TypeError, ValueError):
            # The work is done; a result that cannot be stored must not repeat it (reliability D15).
            job.result = repr(job.result)
            return self.serialize(job)

    def row(self, job: Job) -> str:
        """What the attempts table needs and only the worker knows, as JSON (see `saqkit.worker.recording`)."""
        claim = self.claim_of(job)
        facts = {"started_at": job.started / 1000 + self.clock_offset_s, **(claim.facts if claim else {})}
        error = (job.error or "").strip().rsplit("\n", 1)[-1].split(":", 1)[0] if job.error else ""
        return json.dumps({"function": job.function, "meta": job.meta, "error": error[:200], **facts})

    # --- what SAQ's users call -------------------------------------------------------------------------------------

    async def update(self, job: Job, **kwargs: Any) -> None:
        """Store changed properties of a live job, and tell those who listen."""
        job.touched = now_ms()
        for name, value in kwargs.items():
            if hasattr(job, name):
                setattr(job, name, value)
        claim = self.claim_of(job)
        if claim is not None and kwargs == {"status": Status.ACTIVE} and not claim.facts.get("begun"):
            claim.facts["begun"] = True  # what SAQ's worker says first: take.lua has stored it already
            return
        await self.run_script("update", job.key, claim.token if claim else "", self.serialize(job))

    async def abort(self, job: Job, error: str, ttl: float = 5) -> None:
        """Cancel a waiting, scheduled or running job; a worker that runs it stops it within a second."""
        said = await self.run_script(
            "cancel", job.key, error, max(job.ttl, int(ttl)) if job.ttl > 0 else job.ttl, "", ""
        )
        if said[0]:
            job.status, job.error, job.completed = Status.ABORTED, error, now_ms()
            self.aborted += 1

    async def finish_abort(self, job: Job) -> None:
        """The worker has stopped a job that was cancelled."""
        claim = self.claim_of(job)
        if claim is not None and self._leases is not None:
            self._leases.discard(claim)
            self._claims.pop(claim.key, None)

    async def schedule(self, lock: int = 1) -> list[str]:
        """Let due jobs join the line now (they do by themselves when somebody takes); returns their ids."""
        return [self.job_id(key.decode()) for key in await self.run_script("promote")]

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Queue every job again whose holder stopped renewing its lease, all at once; returns their ids."""
        swept = [self.job_id(key.decode()) for key in await self.run_script("recover", POISON_CRASHES)]
        if swept:
            logger.warning("recovered %d jobs of workers that are gone: %s", len(swept), ", ".join(swept[:5]))
        return swept

    async def job(self, job_key: str) -> Job | None:
        """The job of a key, None if there is none."""
        return (await self.jobs([job_key]))[0]

    async def jobs(self, job_keys: Iterable[str]) -> list[Job | None]:
        """The jobs of keys, None where there is none."""
        async with self._op_sem, self.redis.pipeline(transaction=False) as pipe:
            for key in job_keys:
                pipe.hmget(self.key_of(key), "body", "state", "att", "err")
            return [self._stored(fields) for fields in await pipe.execute()]

    async def _get_job_by_id(self, job_id: bytes | str) -> Job | None:
        text = job_id.decode() if isinstance(job_id, bytes) else job_id
        return await self.job(self.job_key_from_id(text))

    def _stored(self, fields: list[Any]) -> Job | None:
        body, state, attempts, error = fields
        if body is None:
            return None
        job = self.deserialize(body, STATUS[State(int(state))])
        assert job is not None
        job.attempts = int(attempts or 0)
        if error is not None:
            job.error = error.decode()
        return job

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

    async def count(self, kind: Literal["queued", "active", "incomplete", "scheduled", "dead"]) -> int:  # type: ignore[override]
        """How many jobs are queued, active, scheduled, dead, or incomplete (the first three together)."""
        names = {"queued": [f"queued:{level}" for level in LEVELS], "active": ["leases"], "scheduled": ["scheduled"],
                 "dead": ["dead"]}  # fmt: skip
        names["incomplete"] = names["queued"] + names["active"] + names["scheduled"]
        if kind not in names:
            raise ValueError(f"Can't count unknown type {kind}")
        async with self.redis.pipeline(transaction=False) as pipe:
            for name in names[kind]:
                pipe.zcard(self.namespace(name))
            return sum(await pipe.execute())

    async def info(self, jobs: bool = False, offset: int = 0, limit: int = 10) -> Any:
        """What SAQ's `info` returns: workers, counts, and (with `jobs`) the jobs that are active or next."""
        infos = [key.decode() for key in await self.redis.zrangebyscore(self._stats, now_ms(), "inf")]
        stored = await self.redis.mget(infos) if infos else []
        workers = {key.rsplit(":", 1)[1]: json.loads(value) for key, value in zip(infos, stored, strict=True) if value}
        listed: list[dict[str, Any]] = []
        if jobs:
            keys: list[bytes] = []
            for name in ["leases", *(f"queued:{level}" for level in LEVELS), "scheduled"]:
                keys += await self.redis.zrange(self.namespace(name), 0, offset + limit - 1)
            found = await self.jobs(key.decode() for key in keys[offset : offset + limit])
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
        """Call `callback(key, status)` whenever a job is told of, until it returns true."""
        channels = [self.key_of(key) for key in job_keys]
        if not channels:
            return
        async for message in self._pubsub.listen(*channels, timeout=timeout):
            stop = callback(message["channel"][len(self.keys[1]) :], Status[message["data"].decode().upper()])
            if await stop if asyncio.iscoroutine(stop) else stop:
                return

    async def notify(self, job: Job) -> None:
        """Tell those who listen a job's status."""
        await self.redis.publish(self.key_of(job.key), job.status)

    # --- upkeep ----------------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        """Recover what dead workers held, and forget old dead letters, for as long as this process takes jobs."""
        backoff, forgotten = Backoff(f"queue {self.name}"), 0.0
        while True:
            await asyncio.sleep(self.sweep_s)
            try:
                await self.sweep()
                if time.monotonic() - forgotten > 60:
                    await self.run_script("forget", self.dead_retention_s)
                    forgotten = time.monotonic()
                backoff.over()
            except AWAY as error:
                await backoff.wait(error)
            except Exception:
                logger.exception("upkeep of queue %s", self.name)

    async def disconnect(self) -> None:
        """Give back what is still held, stop the upkeep, close every connection."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
            self._upkeep = None
        await self._taker.close()
        try:
            async with asyncio.timeout(5):
                await self._flusher.drained()
                for claim in list(self._claims.values()):
                    await self.run_script("release", claim.key, claim.token, "{}")
        except (TimeoutError, *AWAY):
            logger.warning("queue %s: the broker is away, what this process held comes back when its leases expire",
                           self.name)  # fmt: skip
        self._claims.clear()
        if self._leases is not None:
            await asyncio.to_thread(self._leases.close)
            self._leases = None
        await super().disconnect()
