"""`Queue`: SAQ's Redis queue with priorities, exact backoff, rate limits, dead letters and leases."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from secrets import token_hex
from typing import Any, Literal, Self

from redis import asyncio as aioredis
from saq.job import TERMINAL_STATUSES, Job, Status
from saq.utils import now as now_ms

from saqkit.errors import UsageError
from saqkit.queue import fault_sites
from saqkit.queue.batches import BatchedJobs
from saqkit.queue.configuring import ConfiguredJobs
from saqkit.queue.connecting import queue_client
from saqkit.queue.enqueueing import CHUNK, Enqueuer
from saqkit.queue.fields import mend_fields, refuse_odd_changes
from saqkit.queue.following import Courier, follow_up
from saqkit.queue.holding import HeldJobs
from saqkit.queue.job import change, compact, new_job
from saqkit.queue.leases import Claim, LeaseKeeper
from saqkit.queue.operating import OperatedJobs
from saqkit.queue.payload import IN_BODY, Payload, draw_curtain
from saqkit.queue.promoting import Promoter
from saqkit.queue.silent_slots import SilentSlots
from saqkit.queue.submitting import NewJob, Submitted, submit_many, told
from saqkit.queue.taking import Taker
from saqkit.queue.timetable import Schedule, Timetable
from saqkit.queue.unique import Unique
from saqkit.queue.upkeep import Upkeep
from saqkit.spec.backoff import Retry
from saqkit.spec.lifecycle import POISON_CRASHES, State
from saqkit.spec.topology import Priority, RateLimit, RunningLimit

logger = logging.getLogger("saqkit")


class Queue(OperatedJobs, ConfiguredJobs, BatchedJobs, HeldJobs):
    """A queue on Redis or Valkey.

    Args beyond `RedisQueue`'s:
        rate_limit: at most so many jobs (or users) are taken in any window, over all processes; default none
        weights: of the four levels by name, shares of what is taken while all wait; default none: strictly by level
        fairness: "tenants": inside a level the tenants (a job's `meta["tenant"]`) take turns; default "none"
        tenant_rate_limit: as `rate_limit`, for each tenant; default none
        running_limits: how many jobs of one tenant, job type, provider, argument … run at once, over all processes
        providers: by job type the provider that it sends by, for a running limit of the key "provider"
        policies: retry policy by function name; a function without one keeps SAQ's `retries` and `retry_delay`
        lease_s: a claim expires this long after its last renewal (default 5)
        sweep_s: how often expired claims are looked for (default 5)
        tick_s: delayed jobs and retries wake on this grid (default 0.2)
        dead_retention_s: how long dead letters are kept (default 7 days)
        dead_cap: at most so many dead letters are kept, the oldest go first (default 100,000; 0: no limit)
        max_body_bytes: a job's body may not be longer (default 64 KB, 0: no limit)
        seed: for jitter, the same in the model
        schedules: jobs that it gets again and again, while any process takes jobs of it (docs/scheduling.md)
        payload: which arguments are sealed, or hidden where jobs are shown (docs/payload_safety.md)

    A job's `priority` is 1 critical, 2 high, 3 normal, 4 low; 0 (SAQ's default) counts as normal.
    """

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """A queue on the server at `url`: plain, TLS, a unix socket, sentinels or a cluster (docs/where_it_runs.md)."""
        return cls(queue_client(url, kwargs.get("name", "default")), **kwargs)

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
        weights: Mapping[str, float] | None = None,
        fairness: Literal["none", "tenants"] = "none",
        tenant_rate_limit: RateLimit | None = None,
        running_limits: Sequence[RunningLimit] = (),
        providers: Mapping[str, str] | None = None,
        policies: Mapping[str, Retry] | None = None,
        lease_s: float = 5.0,
        sweep_s: float = 5.0,
        tick_s: float = 0.2,
        dead_retention_s: float = 7 * 86_400.0,
        dead_cap: int = 100_000,
        max_body_bytes: int = 65_536,
        seed: int = 0,
        schedules: Sequence[Schedule] = (),
        payload: Payload | None = None,
    ) -> None:
        if payload is not None and (dump is not None or load is not None):
            raise UsageError(f"queue {name}: fields are sealed in JSON bodies (leave out dump and load, or payload)")
        super().__init__(redis, name, dump, load, max_concurrent_ops, swept_error_message)
        self.rate_limit, self.policies, self.seed = rate_limit, dict(policies or {}), seed
        self._take_by(providers, {
            "rate_limit": rate_limit, "weights": weights, "fairness": fairness, "tenant_rate_limit": tenant_rate_limit,
            "running_limits": tuple(running_limits),
        })  # fmt: skip
        self.lease_s, self.sweep_s, self.tick_s, self.dead_retention_s = lease_s, sweep_s, tick_s, dead_retention_s
        self.max_body_bytes = max_body_bytes
        self.worker_name = f"{socket.gethostname()}.{os.getpid()}"
        self.dead_cap = dead_cap
        self.enqueuer = Enqueuer(self)
        self.courier = Courier(self)
        self._taker = Taker(self)
        self.flusher.more = self._taker.more
        self.payload, self._unopened = payload, set[str]()
        if payload is not None:
            draw_curtain()
        self.timetable = Timetable(self, schedules)
        self._upkeep, self.promoter = Upkeep(self), Promoter(self)
        self._slots = SilentSlots(self)

    # --- enqueue ---------------------------------------------------------------------------------------------------

    async def enqueue(self, job_or_func: str | Job, **kwargs: Any) -> Job | None:
        """Enqueue a job, or a function with its arguments; None while a job of its key lives or the key stays taken.

        What is enqueued at once shares a round trip. `kwargs` are properties of the job or arguments of the function.
        `UsageError` if the job's body is longer than `max_body_bytes`, its priority is none, or a field of it is not of
        its kind (`retries="3"`).
        """
        if isinstance(job_or_func, str):
            job: Job = new_job(job_or_func, kwargs)
        else:
            job = job_or_func
            change(job, kwargs)
        await self.prepare(job)
        return await self._enqueue(job)

    async def _enqueue(self, job: Job) -> Job | None:
        if not await self.enqueuer.one(job):
            return None
        if logger.isEnabledFor(logging.INFO):
            logger.info("Enqueued %s", job.info())
        return job

    async def enqueue_many(self, jobs: Iterable[Job], chunk: int = CHUNK) -> list[bool]:
        """Enqueue jobs, `chunk` of them in a round trip; returns for each whether it was accepted.

        A job is not accepted while a job of its key lives, or within the time its key stays taken. Where a job is
        refused (`UsageError`) or the broker is away, chunks before it are enqueued: with keys of your own the call can
        be repeated.
        """
        return await self.enqueuer.many(jobs, chunk)

    async def enqueue_each(
        self, function: str, arguments: Iterable[Mapping[str, Any]], *, keys: Iterable[str] | None = None,
        chunk: int = CHUNK, **properties: Any,
    ) -> list[str | None]:  # fmt: skip
        """Enqueue a job of `function` for each of some arguments: the quickest way to enqueue many.

        `keys`: one for each, none: made up. `properties` of all the jobs, as `priority` or `timeout`. Returns the keys,
        None where a job was not accepted; what is raised is as with `enqueue_many`.
        """
        return await self.enqueuer.each(function, arguments, keys, chunk, properties)

    async def submit(
        self, function: str, kwargs: Mapping[str, Any] | None = None, *, key: str | None = None,
        priority: int | str = "normal", delay_s: float = 0.0, at: datetime | None = None,
        unique: Unique | str | None = None, **properties: Any,
    ) -> Submitted:  # fmt: skip
        """Enqueue a function with its arguments; says whether it was accepted, and which job is in its way if not.

        What the others mean is told by `NewJob`. Raises `UsageError` where something of it cannot be.
        """
        job = NewJob(function, kwargs or {}, key, priority, delay_s, at, unique, properties).job()
        return told(job, await self.enqueue(job) is not None)

    def submit_many(self, jobs: Iterable[NewJob], chunk: int = CHUNK) -> AsyncIterator[Submitted]:
        """Submit jobs, `chunk` of them in a round trip, in bounded memory; yields for each what `submit` returns.

        Where a chunk fails, because a job in it cannot be or the broker is away, what was yielded is known, nothing
        behind that chunk was sent, and the error is raised; a chunk that the broker did not answer may be in.
        """
        return submit_many(self, jobs, chunk)

    async def follow_up(self, parent: Job, job_or_func: str | Job, **kwargs: Any) -> Job:
        """Have a job of this queue follow `parent`, whose function runs in this process, in this or another queue.

        It is enqueued in the step that makes `parent` done, and not at all if this attempt fails. `kwargs` as for
        `enqueue`; without a key it gets one that is derived from its parent's. Into another queue it is delivered at
        least once, and is one job, because of its key. `UsageError` for one that is delayed or unique, or if `parent`
        does not run here.
        """
        return await follow_up(self, parent, job_or_func, kwargs)

    @property
    def plain(self) -> bool:
        """Whether bodies are SAQ's JSON and nobody wants to see jobs before they are enqueued."""
        return self._dump is compact and not self._before_enqueues

    async def prepare(self, job: Job) -> None:
        """What happens to a job before it is enqueued."""
        if job.queue is not None and job.queue.name != self.name:
            raise ValueError(f"Job {job} registered to a different queue")
        job.queue, job.queued, job.status = self, now_ms(), Status.QUEUED
        if not job.key:  # else all of them would be one job
            job.key = token_hex(16)
        if self._before_enqueues:
            await self._before_enqueue(job)

    # --- take ------------------------------------------------------------------------------------------------------

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:
        """Take the next job, waiting at most `timeout` seconds (0: until there is one); None if there was none."""
        self._upkeep.start()
        job = await self._taker.take(timeout)
        if job is not None:
            self._slots.watch(job)
            if fault_sites.armed:
                fault_sites.armed.at("job.claimed")
        return job

    async def dequeue_many(self, free: Callable[[], int]) -> list[Job]:
        """Jobs for the free slots of a worker, at least one; `free` tells how many are free. One caller at a time."""
        self._upkeep.start()
        jobs = await self._taker.take_many(free)
        if fault_sites.armed:
            fault_sites.armed.at("job.claimed")
        return jobs

    async def stop_taking(self) -> None:
        """End `dequeue_many`: what is under way is given back."""
        await self._taker.stop_taking()

    def claimed(self, row: list[Any], taken_at: float) -> Job:
        """The job of a row of `take.lua`, claimed by this process: its lease is renewed from now on."""
        key, token, attempt, crashes, priority, first_queued, ready, body, recorded = row
        job = self.deserialize(body)
        assert job is not None
        mend_fields(job)
        if IN_BODY in body and job.key not in self._unopened:
            payload = self.payload or Payload()
            job.kwargs, job.__dict__["sealed"] = payload.open(job.key, job.function, job.kwargs or {})
        facts = {"queued_at": float(first_queued), "ready_at": float(ready)} if recorded else {}
        claim = Claim(key.decode(), token, attempt, crashes, priority, taken_at, job, body, bool(recorded), facts=facts)
        if job.timeout:
            claim.until = time.monotonic() + job.timeout + self.lease_s
        job.attempts, job.status = attempt - 1, Status.ACTIVE  # the worker counts this execution itself
        if priority != (job.priority or Priority.NORMAL):  # it was changed while it waited
            job.priority = priority
        self._claims[claim.key] = claim
        job.__dict__["claim"] = claim
        if self._leases is None:
            self._leases = LeaseKeeper(self.redis, self.keys, self.lease_s, self._is_heard)
        self._leases.add(claim)
        return job

    def _is_heard(self) -> bool:
        """Whether the server hears of this process by its questions, or need not, because it does not serve."""
        return self._taker.asks or not self._upkeep.runs

    def bury_unreadable(self, row: list[Any], error: Exception) -> None:
        """Make a dead letter of a taken job whose body is no job."""
        facts = json.dumps({"error": type(error).__name__})
        self.flusher.say("bury", (self.dead_cap,), (row[0], row[1], "", f"unreadable: {error!r}", facts))

    async def _seize(self, job: Job) -> Claim | None:
        """Take this very job out of the line, so that it can be changed by who did not `dequeue` it."""
        self._unopened.add(job.key)  # who changes a job need not read it
        try:
            at = await self._taker.seize(job.key)
        finally:
            self._unopened.discard(job.key)
        if at is None:
            return None
        claim = self._claims[job.key]
        claim.taken_at, claim.job = at, job
        job.__dict__["claim"] = claim
        return claim

    # --- end of an attempt (and see `HeldJobs`) --------------------------------------------------------------------

    async def finish(
        self, job: Job, status: Status, *, result: Any = None, error: str | None = None, **kwargs: Any
    ) -> None:
        """End a job: complete, failed (it becomes a dead letter) or aborted. The end is known when this returns."""
        claim = self.claim_of(job)
        if claim is None:
            await super().finish(job, status, result=result, error=error, **kwargs)
        else:
            await asyncio.shield(self.conclude(job, status, result=result, error=error))

    async def retry(self, job: Job, error: str | None) -> None:
        """Try a job again after its delay. An operator's retry replays a dead letter; to a live job it does nothing."""
        claim = self.claim_of(job)
        task = asyncio.current_task()
        if claim is None:
            await super().retry(job, error)
        elif error == "cancelled" and task is not None and task.cancelling():
            # What SAQ's worker says when it is told to stop: that is no failure of the job.
            job.error = error
            await asyncio.shield(self.give_back(job))
        else:
            await asyncio.shield(self.conclude_retry(job, error))

    async def _finish(self, job: Job, status: Status, *, result: Any = None, error: str | None = None) -> None:
        """End a job that this process does not hold: whoever asks is an operator."""
        if status == Status.ABORTED:
            await self._cancel(job, error or "aborted", 0)
            return
        ended = dataclasses.replace(job)  # the job may be refreshed meanwhile, from what is stored
        claim = await self._seize(ended)
        if claim is None:
            logger.warning("job %s: not held by this process, and it does not wait: it is not finished", job.key)
            return
        claim.counts = False
        await asyncio.shield(self.conclude(ended, status, result=result, error=error))
        job.replace(ended)

    async def _retry(self, job: Job, error: str | None) -> None:
        """Replay a dead letter for an operator; what is not there any more is enqueued."""
        if not (await self.run_script("replay", job.key))[0]:
            await self.enqueuer.one(job)

    # --- what SAQ's users call -------------------------------------------------------------------------------------

    async def update(self, job: Job, **kwargs: Any) -> None:
        """Store changed properties of a live job, and tell those who listen.

        A status is a wish: "active" takes a waiting job for this process, "aborting" cancels it, a final one ends it.
        """
        refuse_odd_changes(job, kwargs)
        job.touched = now_ms()
        for name, value in kwargs.items():
            if hasattr(job, name):
                setattr(job, name, value)
        claim, status = self.claim_of(job), kwargs.get("status")
        if status in (Status.ABORTING, Status.ABORTED):
            await self.abort(job, job.error or "aborted")
            return
        if claim is None and status in TERMINAL_STATUSES:
            await self.finish(job, status, result=job.result, error=job.error)
            return
        if claim is None and status == Status.ACTIVE:
            claim = await self._seize(job)
        elif claim is not None and kwargs == {"status": Status.ACTIVE} and not claim.facts.get("begun"):
            claim.facts["begun"] = True  # what SAQ's worker says first: take.lua has stored it already
            return
        await self.run_script("update", job.key, claim.token if claim else "", self.serialize(job))

    async def abort(self, job: Job, error: str, ttl: float = 5) -> None:
        """Cancel a waiting, scheduled or running job.

        A worker that runs it learns so when it next renews its leases, and stops it within `lease_s` / 3 + 0.5 s (by
        default 2.2 s). Until it has, or for `ttl` seconds, the key of a job that was running stays taken.
        """
        was = await self._cancel(job, error, ttl)
        if was:
            job.status, job.error, job.completed = Status.ABORTED, error, now_ms()
            self.aborted += was != State.ACTIVE  # else its worker counts it

    async def _cancel(self, job: Job, error: str, grace_s: float) -> int:
        """In which state the job was, 0 where it was not live."""
        was = int((await self.run_script("cancel", job.key, error, job.ttl, "", "", grace_s, ""))[0])
        if was:
            self.courier.go()  # its batch may have called back into another queue
        return was

    async def finish_abort(self, job: Job) -> None:
        """The worker has stopped a job that was cancelled, or whose heartbeat is missing."""
        claim = self.claim_of(job)
        if claim is not None and claim.said is None:
            await self.finish(job, Status.ABORTED, error=job.error)

    async def schedule(self, lock: int = 1) -> list[str]:
        """Let due jobs join the line now; returns their ids. Whoever waits for jobs does so by itself."""
        if self._taker.waits:
            return []
        return [self.job_id(key.decode()) for key in await self.run_script("promote", self.tick_s)]

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Queue every job again whose holder stopped renewing its lease, all at once; returns their ids."""
        swept: list[str] = []
        found = [b""] * 1000
        while len(found) == 1000:
            found = await self.run_script("recover", POISON_CRASHES, self.lease_s, self.dead_cap)
            swept += [self.job_id(key.decode()) for key in found]
        if swept:
            self.courier.go()  # as in `_cancel`: a poison job has ended
            logger.warning("recovered %d jobs of workers that are gone: %s", len(swept), ", ".join(swept[:5]))
        return swept

    # --- upkeep ----------------------------------------------------------------------------------------------------

    async def write_worker_info(self, worker_id: str, info: Any, ttl: int) -> None:
        """Tell the web page that a worker lives; what this process takes from now on is taken under that name."""
        self.worker_name = worker_id
        if fault_sites.armed:
            fault_sites.armed.at("info.before")
        await super().write_worker_info(worker_id, info, ttl)
        if fault_sites.armed:
            fault_sites.armed.at("info.after")

    async def disconnect(self) -> None:
        """Give back what is still held, stop the upkeep, close every connection."""
        await self._upkeep.stop()
        await self._taker.close()
        await self.promoter.stop()
        self._slots.close()
        try:
            async with asyncio.timeout(5):
                held = [claim.job for claim in self._claims.values()]
                await asyncio.gather(*(self.release(job) for job in held), return_exceptions=True)
                await self.flusher.over()
                await self.courier.over()
        except TimeoutError:
            logger.warning("queue %s: the broker is away, what this process held comes back when its leases expire",
                           self.name)  # fmt: skip
        await self.flusher.stop()
        await self.courier.stop()
        self._claims.clear()
        if self._leases is not None:
            await asyncio.to_thread(self._leases.close)
            self._leases = None
        await self.line.close()
        await super().disconnect()
