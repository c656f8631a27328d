"""What this process holds of a queue: saying how its attempts end, once each, without waiting for the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any

from redis import asyncio as aioredis
from saq.job import Job, Status
from saq.utils import now as now_ms

from saqkit.errors import DescriptionError
from saqkit.queue import fault_sites
from saqkit.queue.ended import row_of, stored_body, writable
from saqkit.queue.flushing import Flusher
from saqkit.queue.following import POSTED, Courier, told
from saqkit.queue.leases import Claim, LeaseKeeper
from saqkit.queue.payload import hidden_end
from saqkit.queue.stored import StoredJobs
from saqkit.spec.backoff import LONGEST_DELAY_S, Retry
from saqkit.spec.draws import Stream, uniform

if TYPE_CHECKING:
    from saqkit.queue.taking import Taker

logger = logging.getLogger("saqkit")


class HeldJobs(StoredJobs):
    """The half of a queue that ends jobs; see `Queue`."""

    policies: Mapping[str, Retry]
    seed: int
    tick_s: float
    dead_cap: int
    courier: Courier
    _taker: Taker

    def __init__(self, redis: aioredis.Redis, name: str, *options: Any) -> None:
        super().__init__(redis, name, *options)
        self.flusher = Flusher(self.line, self.keys)
        self._leases: LeaseKeeper | None = None

    @property
    def clock_offset_s(self) -> float:
        """Seconds to add to this process's `time.time()` to get the server's clock."""
        return self._taker.clock_offset_s

    def conclude(
        self, job: Job, status: Status, *, result: Any = None, error: str | None = None
    ) -> asyncio.Future[int]:
        """Say how the attempt of a job that this process holds has ended; the future is done when the server knows.

        It gets 1, `POSTED` or 2 (said before) where the server took it, 0 where the claim was no longer held.
        """
        claim = self.claim_of(job)
        assert claim is not None
        if status == Status.ABORTED and not claim.lost and claim.overdue():
            error = f"{self.swept_error_message}: no heartbeat for {job.heartbeat} s"
            if job.retryable:
                return self.conclude_retry(job, error)
            status = Status.FAILED
        result, error = hidden_end(job, result, writable(error))
        job.status, job.result, job.error, job.completed = status, result, error, now_ms()
        if status == Status.COMPLETE:
            job.progress = 1.0
            ttl, followers = told(claim, job.ttl)
            body = stored_body(self, job, claim)
            return self._say(claim, status, "finish", (), body, ttl, self._row(job, claim), *followers)
        if status == Status.ABORTED:
            facts = (error or "aborted", job.ttl, claim.token, self._row(job, claim), 0, "")
            return self._say(claim, status, "cancel", None, *facts)
        body = stored_body(self, job, claim)
        return self._say(claim, Status.FAILED, "bury", (self.dead_cap,), body, "", self._row(job, claim))

    def conclude_retry(self, job: Job, error: str | None) -> asyncio.Future[int]:
        """Say that the attempt of a job that this process holds has failed and the job is to be tried again.

        A job whose function SAQ's worker does not know is not: it becomes a dead letter at once.
        """
        claim = self.claim_of(job)
        assert claim is not None
        if error and error.rstrip().endswith(f"KeyError: {job.function!r}") and "self.functions[job.function]" in error:
            return self.conclude(job, Status.FAILED, error=f"UnknownFunction: this worker has no {job.function}")
        job.error = hidden_end(job, None, writable(error))[1]
        row = self._row(job, claim)
        job.status, job.completed, job.started, job.progress, job.touched = Status.QUEUED, 0, 0, 0, now_ms()
        job.scheduled = 0
        body, delay_s = stored_body(self, job, claim), self.delay_s(job)
        return self._say(claim, Status.QUEUED, "retry", (self.tick_s,), body, delay_s, row)

    def give_back(self, job: Job) -> asyncio.Future[int]:
        """Give a job that this process holds back to its old place in the line; the attempt is not counted."""
        claim = self.claim_of(job)
        assert claim is not None
        row = self._row(job, claim)
        job.status, job.started = Status.QUEUED, 0
        job.attempts = claim.attempt - 1
        return self._say(claim, Status.NEW, "release", (), stored_body(self, job, claim), row)

    async def release(self, job: Job) -> None:
        """`give_back`, and wait until the server knows; of a job that is not held: nothing."""
        if self.claim_of(job) is not None:
            await asyncio.shield(self.give_back(job))

    def disown(self, job: Job) -> None:
        """Stop renewing a job whose end cannot be told: it is recovered when its lease expires, as one that crashed."""
        claim = self.claim_of(job)
        if claim is not None and claim.said is None:
            self._forget(claim)

    def _row(self, job: Job, claim: Claim) -> str:
        return row_of(self, job, claim) if claim.recorded else ""

    def _say(
        self, claim: Claim, becomes: Status, name: str, head: tuple[Any, ...] | None, *facts: Any
    ) -> asyncio.Future[int]:
        """Say the transition that ends `claim`; there is only one, whatever a slot says after it was cancelled."""
        if claim.said is None:
            if fault_sites.armed:
                fault_sites.armed.at("job.effect")
            job = (claim.key, *facts) if head is None else (claim.key, claim.token, *facts)
            claim.said = self.flusher.say(name, head or (), job)
            claim.said.add_done_callback(partial(self._concluded, claim, becomes))
        else:
            self._count(becomes)
        return claim.said

    def _concluded(self, claim: Claim, becomes: Status, said: asyncio.Future[int]) -> None:
        self._forget(claim)
        if said.cancelled() or said.exception():
            return
        if not said.result():
            logger.warning("job %s: the claim of this worker was no longer held, its result is refused", claim.key)
            return
        if said.result() == POSTED:  # of an attempt that was cancelled: it was active, which may have posted something
            self.courier.go()
        if claim.counts:
            self._count(becomes)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("job %s is %s", claim.key, becomes)

    def _count(self, becomes: Status) -> None:
        self.complete += becomes == Status.COMPLETE
        self.failed += becomes == Status.FAILED
        self.aborted += becomes == Status.ABORTED
        self.retried += becomes == Status.QUEUED

    def _forget(self, claim: Claim) -> None:
        if self._leases is not None:
            self._leases.discard(claim)
        if self._claims.get(claim.key) is claim:
            del self._claims[claim.key]

    def policy_of(self, job: Job) -> Retry | None:
        """The retry policy of a job: its own if it has one, else that of its function.

        Its own is in `meta["retry_policy"]`, as `Retry.to_dict` writes it; what others have stored there and is
        no policy counts as none.
        """
        own = job.meta.get("retry_policy") if isinstance(job.meta, dict) else None
        if own and isinstance(own, dict):
            with suppress(DescriptionError):
                return Retry.parse(own)
        return self.policies.get(job.function)

    def delay_s(self, job: Job) -> float:
        """How long `job` waits before its next attempt, in seconds: a week at most, by whatever policy."""
        policy = self.policy_of(job)
        if policy is None:
            if not job.retry_delay:
                return 0.0
            try:
                return min(LONGEST_DELAY_S, job.next_retry_delay())
            except OverflowError:  # as `Retry.base_delay_s`: it doubles with each attempt
                most = job.retry_backoff if job.retry_backoff is not True else LONGEST_DELAY_S
                return min(LONGEST_DELAY_S, most) * random()
        claim = self.claim_of(job)
        failed = claim.attempt if claim else max(1, job.attempts)
        event, users = job.meta.get("event", 0) if isinstance(job.meta, dict) else 0, _users(job)
        first = users[0] if users and isinstance(users[0], int) else 0
        event = int(event) if str(event).isdecimal() else 0
        return policy.delay_after(failed, uniform(self.seed, Stream.JITTER, event, first, failed))


def _users(job: Job) -> Sequence[Any]:
    users = (job.kwargs or {}).get("users")
    return users if isinstance(users, list | tuple) else ()
