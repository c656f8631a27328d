"""What no deployment of a given size can do better, known without a simulation: a burst's time, a stream's rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from math import ceil, inf

import numpy as np

from saqkit.spec.topology import FanOut, JobType, Queue, RateLimit, Topology
from saqkit.spec.workload import Burst, Poisson, Profile, Workload
from sim.engine.ledger import channel_of, shared_channels
from sim.running.scenario import Scenario

Kind = tuple[str, str]
"""(tenant, job type) of jobs."""
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
    """A time below which no run of a burst can serve `share` of its users: by the slots, a limit, the provider.

    Slots: the provider's work over what is served at once (3 % less, for luck); with a provider that lets a process
    have few connections: over those; where few jobs of one tenant, event, type or provider may run at once: over what
    they serve at once, as a burst is one event of one tenant. Rate limits, of queue, tenant and provider: jobs, users
    or sends over what is admitted. Only topologies whose users come through one fan-out are judged; of others the bound
    is 0.
    """
    arrivals, stage = scenario.workload.arrivals, _stage(scenario)
    if not isinstance(arrivals, Burst) or not share or stage is None:
        return Limit()
    queue, job, fan_out = stage
    users = share * arrivals.users
    best = Limit()
    if job.per_user.provider:
        provider = scenario.topology.providers[job.per_user.provider]
        latency_s = _latency_s(scenario, job.per_user.provider)
        for running in queue.running_limits:
            served = running.limit * min(job.send_concurrency, fan_out.batch_size)
            value = {"job_type": fan_out.to, "provider": job.per_user.provider}.get(running.key, "")
            limited = Limit(0.97 * users * latency_s / served, f"running limit {_whose(running.key, value)}")
            best = max(best, limited, key=lambda bound: bound.best_s)
        at_once = _at_once(scenario, job)
        most, part = at_once, "slots"
        if provider.connections and (connected := provider.connections * _serving(scenario, job)) < at_once:
            most, part = connected, "connections"
        best = max(best, Limit(0.97 * users * latency_s / most, part), key=lambda bound: bound.best_s)
        if provider.rate:
            sent_s = (ceil(users / provider.rate.limit) - 1) * provider.rate.period_s
            best = max(best, Limit(sent_s, "provider's rate"), key=lambda bound: bound.best_s)
    for rate, why in ((queue.rate_limit, "rate limit"), (queue.tenant_rate_limit, f"rate limit {_whose('tenant')}")):
        if rate:
            weight = users / fan_out.batch_size if rate.unit == "jobs" else users
            limited_s = (ceil(weight / rate.limit) - 1) * rate.period_s
            best = max(best, Limit(limited_s, why), key=lambda bound: bound.best_s)
    return best


@dataclass(frozen=True)
class Rate:
    """At most `users_per_s` can be served for long, because of `why`; (inf, "") where nothing is limited."""

    users_per_s: float = inf
    why: str = ""


def best_rate(scenario: Scenario) -> Rate:
    """The users a second beyond which the backlog of a stream grows whatever is deployed: by the limits of queues, of
    their tenants and of what runs at once there, and by providers' rates.

    What an arriving user asks of each: jobs or users of a queue, places for as long as the provider takes, sends of a
    provider, over the entries' shares, first attempts only. A batch may be as large as `batch_size` allows. Where
    tenants are limited, the one whose share of the users is the largest for its limit decides: its backlog grows first.
    """
    topology = scenario.topology
    each = max((users for _, users in islice(scenario.workload.times(topology, scenario.seed), 1000)), default=1)
    latency_s = {name: _latency_s(scenario, name) for name in topology.providers}
    jobs = defaultdict[Kind, float](float)  # per arriving user
    users = defaultdict[Kind, float](float)
    place_s = defaultdict[Kind, float](float)  # for how long they take a place
    sends = defaultdict[str, float](float)  # of a provider
    shared = shared_channels(topology)  # who is served there by one job is not by another: that is not counted

    def count(tenant: str, name: str, share: float, size: int) -> None:
        job, kind = topology.job_types[name], (tenant, name)
        jobs[kind] += share / size
        if job.fan_out:
            count(tenant, job.fan_out.to, share, min(job.fan_out.batch_size, each))
        else:
            users[kind] += share
            if (provider := job.per_user.provider) is not None and channel_of(topology, job) not in shared:
                sends[provider] += share
                place_s[kind] += share * latency_s[provider] / min(job.send_concurrency, size)
        paid = 1.0
        if job.work == "payment" and (payer := job.per_user.provider) is not None:
            paid -= topology.providers[payer].permanent_share
        for edge in job.follow_up:
            count(tenant, edge.to, share * paid, size)

    def asked(limit: RateLimit, kinds: Iterable[Kind]) -> float:
        """What is counted, per arriving user; a job without users weighs 1 where users are limited."""
        return sum(users.get(kind, jobs[kind]) if limit.unit == "users" else jobs[kind] for kind in kinds)

    for entry in topology.entry:
        for name in topology.starts(entry):
            count(entry.tenant, name, entry.share, each if topology.job_types[name].fan_out else 1)
    found = [Rate()]
    for queue_name, queue in topology.queues.items():
        here = [kind for kind in jobs if topology.job_types[kind[1]].queue == queue_name]
        if limit := queue.rate_limit:
            found.append(_rate(limit.limit / limit.period_s, asked(limit, here), "rate limit"))
        if limit := queue.tenant_rate_limit:
            for tenant, kinds in _by(here, "tenant", topology).items():
                why = f"rate limit {_whose('tenant', tenant)}"
                found.append(_rate(limit.limit / limit.period_s, asked(limit, kinds), why))
        for running in queue.running_limits:
            for value, kinds in _by(here, running.key, topology).items():
                why = f"running limit {_whose(running.key, value)}"
                found.append(_rate(running.limit, sum(place_s[kind] for kind in kinds), why))
    for provider_name, provider in topology.providers.items():
        if provider.rate:
            found.append(_rate(provider.rate.limit / provider.rate.period_s, sends[provider_name], "provider's rate"))
    return min(found, key=lambda rate: rate.users_per_s)


def _rate(most: float, per_user: float, why: str) -> Rate:
    return Rate(most / per_user if per_user else inf, why)


def _by(kinds: Iterable[Kind], key: str, topology: Topology) -> dict[str, list[Kind]]:
    """The kinds of jobs that share the places of a limit; none of a key that is another for each event."""
    found: dict[str, list[Kind]] = {}
    for tenant, name in kinds:
        values = {"tenant": tenant, "job_type": name, "provider": topology.job_types[name].per_user.provider}
        if (value := values.get(key)) is not None:
            found.setdefault(value, []).append((tenant, name))
    return found


def _whose(key: str, value: str = "") -> str:
    name = key.replace("_", " ")
    return f'of {name} "{value}"' if value else f"of each {name}"


def _latency_s(scenario: Scenario, provider: str) -> float:
    """The mean latency of a provider as it is simulated."""
    return float(scenario.profile.costs(scenario.topology).providers[provider].latency.quantiles(_GRID).mean())


def offered_users_per_s(workload: Workload) -> float | None:
    """Users who arrive a second in a steady stream, on average; None for bursts and recorded arrivals."""
    arrivals = workload.arrivals
    if isinstance(arrivals, Poisson):
        return arrivals.rate_per_s * arrivals.users_per_event
    return arrivals.users_per_day / 86_400 if isinstance(arrivals, Profile) else None


def reachable(topology: Topology) -> set[str]:
    """The job types that arriving users become, or that schedules start, directly or through edges."""
    found: set[str] = set()
    entries = [*topology.entry, *(schedule.entry() for schedule in topology.schedules)]
    left = [name for entry in entries for name in topology.starts(entry)]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [to for _, to in topology.job_types[name].edges()]
    return found


def _stage(scenario: Scenario) -> tuple[Queue, JobType, FanOut] | None:
    topology = scenario.topology
    fans = [job.fan_out for job in topology.job_types.values() if job.fan_out]
    if len({topology.starts(entry) for entry in topology.entry}) != 1 or len(fans) != 1:
        return None
    if len(topology.starts(topology.entry[0])) != 1:
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
