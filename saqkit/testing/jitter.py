"""How long a job will wait before each of its retries."""

from __future__ import annotations

import dataclasses

from saq.job import Job

from saqkit.queue.queue import Queue


def delays(queue: Queue, job: Job) -> list[float]:
    """The seconds that `job` waits after its first, second, … failure on `queue`, one less than it has attempts.

    They are what the queue itself will compute (it asks the same method). The jitter of a policy is no chance: it is
    drawn from the queue's `seed`, the job's `event` (in its meta), its first user and the number of the attempt,
    so that a test can state it. Only SAQ's own `retry_backoff=True`, for a function without a policy, draws anew each
    time. The queue's tick then rounds the wake-up up. Nothing is asked of the server.
    """
    policy = queue.policy_of(job)
    most = policy.max_attempts if policy else job.retries
    return [queue.delay_s(dataclasses.replace(job, attempts=failed, key="")) for failed in range(1, most)]
