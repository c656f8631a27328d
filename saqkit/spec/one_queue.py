"""The topology of a team that knows of its jobs how long they take, and no more."""

from __future__ import annotations

from saqkit.spec.backoff import Retry
from saqkit.spec.distributions import AnyDistribution
from saqkit.spec.topology import Entry, JobType, PerUser, Provider, Queue, RateLimit, Topology

LONGEST_S = 30 * 86_400.0
"""A month: jobs that may take longer than any other are still not cut off."""


def one_queue(
    service: AnyDistribution,
    *,
    name: str = "jobs",
    retry: Retry | None = None,
    failing: float = 0.0,
    rate_limit: RateLimit | None = None,
    timeout_s: float = LONGEST_S,
) -> Topology:
    """One queue of jobs that each take as long as `service` says, from `Percentiles` for instance.

    Every arriving user is one job: all of its time is waiting for a provider, none of it this host's CPU. A share
    `failing` of the executions fails at its end and is repeated as `retry` says (none: never, and the job is dead).
    `name` is that of the topology, its queue and its job type. Raises `DescriptionError`.
    """
    job = JobType(
        queue=name,
        retry=retry or Retry(max_attempts=1),
        timeout_s=timeout_s,
        per_user=PerUser(database="none", provider=name),
    )
    return Topology(
        name=name,
        title="One queue of jobs that are known by their times",
        entry=(Entry(job_type=name),),
        queues={name: Queue(rate_limit=rate_limit)},
        job_types={name: job},
        providers={name: Provider(latency=service, temporary_share=failing, timeout_s=timeout_s)},
    )
