"""What no deployment of a given size can do better, known without a simulation: a burst's time, a stream's rate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import ceil, inf

import numpy as np

from saqkit.spec.topology import FanOut, JobType, Queue, Topology
from saqkit.spec.workload import Burst
from sim.running.scenario import Scenario

_GRID = (np.arange(1000) + 0.5) / 1000


@dataclass(frozen=True)
class Limit:
    """A burst takes at least `best_s` seconds, because of `why`; (0, "") where nothing can be said."""

    best_s: float = 0.0
    why: str = ""

    @property
    def is_of_deployment(self) -> bool:
        """Whether more workers or slots would change it."""
        return self.why in ("slots", "connections")


def best_time(scenario: Scenario, share: float) -> Limit:
    """A time below which no run of a burst can serve `share` of its users: by the slots, a rate limit, the provider.

    Slots: the provider's work over what is served at once (3 % less, for luck); with a provider that lets a process
    have few connections: over those. Rate limits: jobs, users or sends over what is admitted. Only topologies whose
    users come through one fan-out are judged; of others the bound is 0.
    """
    arrivals, stage = scenario.workload.arrivals, _stage(scenario)
    if not isinstance(arrivals, Burst) or not share or stage is None:
        return Limit()
    queue, job, fan_out = stage
    users = share * arrivals.users
    best = Limit()
    if job.per_user.provider:
        provider = scenario.topology.providers[job.per_user.provider]
        latency_s = float(provider.latency.quantiles(_GRID).mean())
        at_once = _at_once(scenario, job)
        best = Limit(0.97 * users * latency_s / at_once, "slots")
        if provider.connections and (most := provider.connections * _serving(scenario, job)) < at_once:
            best = Limit(0.97 * users * latency_s / most, "connections")
        if provider.rate:
            sent_s = (ceil(users / provider.rate.limit) - 1) * provider.rate.period_s
            best = max(best, Limit(sent_s, "provider's rate"), key=lambda bound: bound.best_s)
    if limit := queue.rate_limit:
        weight = users / fan_out.batch_size if limit.unit == "jobs" else users
        limited_s = (ceil(weight / limit.limit) - 1) * limit.period_s
        best = max(best, Limit(limited_s, "rate limit"), key=lambda bound: bound.best_s)
    return best


@dataclass(frozen=True)
class Rate:
    """At most `users_per_s` can be served for long, because of `why`; (inf, "") where nothing is limited."""

    users_per_s: float = inf
    why: str = ""


def best_rate(scenario: Scenario) -> Rate:
    """The users a second beyond which the backlog of a stream grows whatever is deployed: queues' and providers' rates.

    What an arriving user asks of each: jobs or users of a queue, sends of a provider, over the entries' shares, first
    attempts only. A batch may be as large as `batch_size` allows.
    """
    topology = scenario.topology
    each = max((users for _, users in islice(scenario.workload.arrivals.times(scenario.seed), 1000)), default=1)
    jobs: dict[str, float] = {}  # of a job type, per arriving user
    users: dict[str, float] = {}

    def count(name: str, share: float, size: int) -> None:
        job = topology.job_types[name]
        jobs[name] = jobs.get(name, 0.0) + share / size
        if job.fan_out:
            count(job.fan_out.to, share, min(job.fan_out.batch_size, each))
        else:
            users[name] = users.get(name, 0.0) + share
        for edge in job.follow_up:
            count(edge.to, share, size)

    for entry in topology.entry:
        for name in topology.starts(entry):
            count(name, entry.share, each if topology.job_types[name].fan_out else 1)
    best = Rate()
    for queue_name, queue in topology.queues.items():
        if limit := queue.rate_limit:
            here = [name for name in jobs if topology.job_types[name].queue == queue_name]
            # A job without users weighs 1 where users are limited.
            weight = sum(users.get(name, jobs[name]) if limit.unit == "users" else jobs[name] for name in here)
            best = _lower(best, Rate(limit.limit / limit.period_s / weight if weight else inf, "rate limit"))
    for provider_name, provider in topology.providers.items():
        if provider.rate:
            sends = sum(n for name, n in users.items() if topology.job_types[name].per_user.provider == provider_name)
            most = provider.rate.limit / provider.rate.period_s / sends if sends else inf
            best = _lower(best, Rate(most, "provider's rate"))
    return best


def _lower(one: Rate, other: Rate) -> Rate:
    return min(one, other, key=lambda rate: rate.users_per_s)


def reachable(topology: Topology) -> set[str]:
    """The job types that arriving users become, directly or through edges."""
    found: set[str] = set()
    left = [name for entry in topology.entry for name in topology.starts(entry)]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [to for _, to in topology.job_types[name].edges()]
    return found


def _stage(scenario: Scenario) -> tuple[Queue, JobType, FanOut] | None:
    topology = scenario.topology
    fans = [job.fan_out for job in topology.job_types.values() if job.fan_out]
    if len(topology.entry) != 1 or len(topology.starts(topology.entry[0])) != 1 or len(fans) != 1:
        return None
    job = topology.job_types[fans[0].to]
    return topology.queues[job.queue], job, fans[0]


def _at_once(scenario: Scenario, job: JobType) -> int:
    slots = scenario.deployment.slots(scenario.topology, job.queue)
    return job.send_concurrency * slots * _serving(scenario, job)


def _serving(scenario: Scenario, job: JobType) -> int:
    """The processes that serve such jobs."""
    deployment = scenario.deployment
    return deployment.hosts * sum(job.queue in queues for queues in deployment.processes(scenario.topology))
