"""What planners reckon without a model, for a whole description: two estimates to show beside predictions."""

from __future__ import annotations

import math

from saqkit.spec.arrivals import Poisson
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import JobType, Topology
from saqkit.spec.workload import Workload
from sim.analysis import theory

__all__ = ["baselines"]

SHARES = {"latency_p50_s": 0.5, "latency_p95_s": 0.95, "latency_p99_s": 0.99}


def baselines(topology: Topology, deployment: Deployment, workload: Workload) -> dict[str, tuple[float, float]]:
    """(users × time / slots, M/M/c) for each measure that such an estimate gives, in the measure's unit.

    A user takes its provider's mean latency and the CPU that the description names, as often as its temporary
    failures ask for (`theory.expected_attempts`); all slots serve; a rate limit is the longest time if it is longer.
    M/M/c takes a job's time as exponential: of a burst `theory.burst_makespan_s`, of a stream `theory.mmc_latency_s`
    and its quantiles. Neither knows of loops, cores, the broker, the database, ticks, faults or the fan-out.
    """
    name, job = _serving(topology)
    slots = sum(deployment.slots(topology, job.queue) for part in deployment.processes(topology) if job.queue in part)
    slots *= deployment.hosts
    user_s, limit = _user_s(topology, job), topology.queues[job.queue].rate_limit
    edges = [one.fan_out for one in topology.job_types.values() if one.fan_out]
    batch = next((edge.batch_size for edge in edges if edge.to == name), 1)
    if isinstance(workload.arrivals, Poisson):
        users = workload.arrivals.users_per_event
        rate = workload.arrivals.rate_per_s * math.ceil(users / batch)
        service_s = min(users, batch) * user_s
        found = {"latency_mean_s": (service_s, float(theory.mmc_latency_s(rate, service_s, slots)))}
        return found | {
            name: (service_s, float(theory.mmc_latency_quantile_s(q, rate, service_s, slots)))
            for name, q in SHARES.items()
        }
    events = [event.users for event in workload.events(topology, seed=0)]
    users, jobs = sum(events), sum(math.ceil(one / batch) for one in events)
    least_s = users / (limit.limit * (1 if limit.unit == "users" else batch)) * limit.period_s if limit else 0.0
    naive_s = max(float(theory.naive_makespan_s(users, user_s, slots)), least_s)
    mmc_s = max(float(theory.burst_makespan_s(jobs, users / jobs * user_s, slots)), least_s)
    found = {"makespan_s": (naive_s, mmc_s), "throughput_users_per_s": (users / naive_s, users / mmc_s)}
    return found | {name: (q * naive_s, q * mmc_s) for name, q in SHARES.items()}


def _serving(topology: Topology) -> tuple[str, JobType]:
    """The job type that serves users through a provider."""
    return next((name, job) for name, job in topology.job_types.items() if job.per_user.provider)


def _user_s(topology: Topology, job: JobType) -> float:
    provider = topology.providers[str(job.per_user.provider)]
    tries = float(theory.expected_attempts(provider.temporary_share, job.retry.max_attempts))
    return (provider.latency.mean_s + job.per_user.cpu_us * 1e-6) * tries
