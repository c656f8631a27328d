"""`Queue`: SAQ's Redis queue with priorities, exact backoff, rate limits, dead letters and leases."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from redis import asyncio as aioredis
from saq.job import TERMINAL_STATUSES, Job, Status
from saq.utils import now as now_ms
from saq.utils import now_seconds

from saqkit.errors import BrokerError, UsageError
from saqkit.queue.ended import row_of, stored_body
from saqkit.queue.leases import Claim, LeaseKeeper
from saqkit.queue.scripts_of_queue import AWAY, Flusher
from saqkit.queue.silent_slots import SilentSlots
from saqkit.queue.stored import LEVELS, StoredJobs
from saqkit.queue.taking import Taker
from saqkit.queue.upkeep import Upkeep
from saqkit.spec.backoff import Retry
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.lifecycle import POISON_CRASHES, State
from saqkit.spec.topology import Priority, RateLimit

logger = logging.getLogger("saqkit")


class Queue(StoredJobs):
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
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """A queue on the server at `url`: redis://, rediss:// or unix://."""
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise BrokerError(f"{url.split('://')[0]}:// is no address of a Redis or Valkey server: give redis://, "
                              "rediss:// or unix:// (a queue needs blocking calls and scripts)")  # fmt: skip
        timeouts: dict[str, Any] = {"socket_timeout": 15, "socket_connect_timeout": 5}
        if not url.startswith("unix://"):
            timeouts["socket_keepalive"] = True
        return cls(aioredis.from_url(url, **timeouts), **kwargs)

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
        super().__init__(redis, name, dump, load, max_concurrent_ops, swept_error_message)
        self.rate_limit, self.policies, self.seed = rate_limit, dict(policies or {}), seed
        self.lease_s, self.sweep_s, self.tick_s, self.dead_retention_s = lease_s, sweep_s, tick_s, dead_retention_s
        self.worker_name = f"{socket.gethostname()}.{os.getpid()}"
        self._flusher = Flusher(redis, self.keys)
        self._taker = Taker(self)
        self._leases: LeaseKeeper | None = None
        self._upkeep = Upkeep(self)
        self._slots = SilentSlots(self)

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
        # A call whose reply was lost is known by its name: sent again, it reports success.
        args: list[Any] = [self.tick_s, secrets.token_hex(6), now_seconds()]
        for job in jobs:
            level = job.priority or int(Priority.NORMAL)
            if level not in LEVELS:
                raise UsageError(f"priority {job.priority} of job {job.key}: 1 critical, 2 high, 3 normal, 4 low")
            if job.function in self.policies:
                job.retries = self.policies[job.function].max_attempts
            keep = float(job.meta.get("keep_key_s", 0))
            args += [job.key, self.serialize(job), level, float(job.scheduled or 0), len(_users(job)), keep or 0]
        for pause_s in (0.02, 0.2):
            try:
                return [bool(said) for said in await self.run_script("enqueue", *args)]
            except AWAY:
                await asyncio.sleep(pause_s)
        return [bool(said) for said in await self.run_script("enqueue", *args)]

    # --- take ------------------------------------------------------------------------------------------------------

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:
        """Take the next job, waiting at most `timeout` seconds (0: until there is one); None if there was none."""
        self._upkeep.start()
        job = await self._taker.take(timeout)
        if job is not None:
            self._slots.watch(job)
        return job

    def claimed(self, row: list[Any], taken_at: float) -> Job:
        """The job of a row of `take.lua`, claimed by this process: its lease is renewed from now on."""
        key, token, attempt, crashes, priority, first_queued, ready, body = row
        job = self.deserialize(body)
        assert job is not None
        claim = Claim(key.decode(), token.decode(), attempt, crashes, priority, taken_at, job, body)
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

    async def bury_unreadable(self, row: list[Any], error: Exception) -> None:
        """Make a dead letter of a taken job whose body is no job."""
        facts = json.dumps({"error": type(error).__name__})
        await self._flusher.say("bury", (), (row[0], row[1], "", f"unreadable: {error!r}", facts))

    async def _seize(self, job: Job) -> Claim | None:
        """Take this very job out of the line, so that it can be changed by who did not `dequeue` it."""
        at, _, _, taken = await self._taker.ask(1, job.key)
        if not taken:
            return None
        claim = self._claims[job.key]
        claim.taken_at, claim.job = at, job
        job.__dict__["claim"] = claim
        return claim

    @property
    def clock_offset_s(self) -> float:
        """Seconds to add to this process's `time.time()` to get the server's clock."""
        return self._taker.clock_offset_s

    # --- end of an attempt -----------------------------------------------------------------------------------------

    async def _finish(self, job: Job, status: Status, *, result: Any = None, error: str | None = None) -> None:
        claim = self.claim_of(job)
        if claim is None and status == Status.ABORTED:
            await self.abort(job, error or "aborted")
        elif claim is None:
            ended = dataclasses.replace(job)  # the job may be refreshed meanwhile, from what is stored
            if await self._seize(ended) is None:
                logger.warning("job %s: not held by this process, and it does not wait: it is not finished", job.key)
                return
            await self._finish(ended, status, result=result, error=error)
            job.replace(ended)
        elif status == Status.COMPLETE:
            await self._end(claim, "finish", (), stored_body(self, job, claim), job.ttl, row_of(self, job, claim))
        elif status == Status.ABORTED:
            await self._end(
                claim, "cancel", None, error or "aborted", job.ttl, claim.token, row_of(self, job, claim), 0
            )
        else:
            await self._end(claim, "bury", (), stored_body(self, job, claim), "", row_of(self, job, claim))

    async def _retry(self, job: Job, error: str | None) -> None:
        claim = self.claim_of(job)
        task = asyncio.current_task()
        if claim is None:  # an operator asks for it
            if not (await self.run_script("replay", job.key))[0]:
                await self._enqueue_all([job])
        elif error == "cancelled" and task is not None and task.cancelling():
            # What SAQ's worker says when it is told to stop: that is no failure of the job.
            job.attempts -= 1
            await self.release(job)
        else:
            job.scheduled = 0
            delay_s = self.delay_s(job)
            await self._end(
                claim, "retry", (self.tick_s,), stored_body(self, job, claim), delay_s, row_of(self, job, claim)
            )

    async def release(self, job: Job) -> None:
        """Give a taken job back to its old place in the line; the attempt is not counted."""
        claim = self.claim_of(job)
        if claim is not None:
            await self._end(claim, "release", (), stored_body(self, job, claim), row_of(self, job, claim))

    async def _end(self, claim: Claim, name: str, head: tuple[Any, ...] | None, *facts: Any) -> None:
        """Say the transition that ends `claim`; there is only one, whatever a slot says after it was cancelled."""
        if claim.said is None:
            job = (claim.key, *facts) if head is None else (claim.key, claim.token, *facts)
            claim.said = self._flusher.say(name, head or (), job)
            claim.said.add_done_callback(lambda _: self._forget(claim))
        # A cancelled slot must not take its transition back: it may already be on its way.
        if not await asyncio.shield(claim.said):
            logger.warning("job %s: the claim of this worker was no longer held, its result is refused", claim.key)

    def _forget(self, claim: Claim) -> None:
        if self._leases is not None:
            self._leases.discard(claim)
        if self._claims.get(claim.key) is claim:
            del self._claims[claim.key]

    def delay_s(self, job: Job) -> float:
        """How long `job` waits before its next attempt, in seconds."""
        policy = self.policies.get(job.function)
        if policy is None:
            return job.next_retry_delay()
        claim = self.claim_of(job)
        failed = claim.attempt if claim else max(1, job.attempts)
        event, users = job.meta.get("event", 0), _users(job)
        first = users[0] if users and isinstance(users[0], int) else 0
        event = int(event) if str(event).isdecimal() else 0
        return policy.delay_after(failed, uniform(self.seed, Stream.JITTER, event, first, failed))

    # --- what SAQ's users call -------------------------------------------------------------------------------------

    async def update(self, job: Job, **kwargs: Any) -> None:
        """Store changed properties of a live job, and tell those who listen.

        A status is a wish: "active" takes a waiting job for this process, "aborting" cancels it, a final one ends it.
        """
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
        """Cancel a waiting, scheduled or running job; a worker that runs it stops it within a second.

        Until it has, or for `ttl` seconds, the key of a job that was running stays taken.
        """
        was = (await self.run_script("cancel", job.key, error, job.ttl, "", "", ttl))[0]
        if was:
            job.status, job.error, job.completed = Status.ABORTED, error, now_ms()
            self.aborted += was != State.ACTIVE  # else its worker counts it

    async def finish_abort(self, job: Job) -> None:
        """The worker has stopped a job that was cancelled."""
        if self.claim_of(job) is not None:
            await self.finish(job, Status.ABORTED, error=job.error)

    async def schedule(self, lock: int = 1) -> list[str]:
        """Let due jobs join the line now (they do by themselves when somebody takes); returns their ids."""
        return [self.job_id(key.decode()) for key in await self.run_script("promote")]

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Queue every job again whose holder stopped renewing its lease, all at once; returns their ids."""
        swept: list[str] = []
        found = [b""] * 1000
        while len(found) == 1000:
            found = await self.run_script("recover", POISON_CRASHES, self.lease_s)
            swept += [self.job_id(key.decode()) for key in found]
        if swept:
            logger.warning("recovered %d jobs of workers that are gone: %s", len(swept), ", ".join(swept[:5]))
        return swept

    # --- upkeep ----------------------------------------------------------------------------------------------------

    async def write_worker_info(self, worker_id: str, info: Any, ttl: int) -> None:
        """Tell the web page that a worker lives; what this process takes from now on is taken under that name."""
        self.worker_name = worker_id
        await super().write_worker_info(worker_id, info, ttl)

    async def disconnect(self) -> None:
        """Give back what is still held, stop the upkeep, close every connection."""
        await self._upkeep.stop()
        await self._taker.close()
        self._slots.close()
        try:
            async with asyncio.timeout(5):
                held = [claim.job for claim in self._claims.values()]
                await asyncio.gather(*(self.release(job) for job in held), return_exceptions=True)
                await self._flusher.drained()
        except TimeoutError:
            logger.warning("queue %s: the broker is away, what this process held comes back when its leases expire",
                           self.name)  # fmt: skip
        await self._flusher.close()
        self._claims.clear()
        if self._leases is not None:
            await asyncio.to_thread(self._leases.close)
            self._leases = None
        await super().disconnect()


def _users(job: Job) -> Sequence[Any]:
    users = (job.kwargs or {}).get("users")
    return users if isinstance(users, list | tuple) else ()
