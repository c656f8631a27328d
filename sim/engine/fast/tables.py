"""What the kernel reads: a description and its costs as plain lists of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import JobType, Topology
from saqkit.spec.workload import Arrival
from sim.engine.costs import Costs
from sim.engine.parts import Host

JITTERS = ("none", "full", "equal")


class Tables(NamedTuple):
    """Queues, job types, entries, events and worker processes by their numbers.

    `x_from[i]` to `x_from[i + 1]` are the rows of `x` that belong to i. Of what may be absent, 0 says so: the limit of
    a queue, the batch size of a type that does not fan out, the priority of an entry; of the deadline, -1. `jobs` is
    how many there will be; `attempts`, `nodes` (users of retries) and `lanes` are for how many there is room.
    """

    seed: int
    deadline_s: float
    tick_phase_s: float
    jobs: int
    attempts: int
    nodes: int
    lanes: int
    workers: int
    queues: int
    hosts: int
    servers: int
    cores: int
    stretch: list[float]
    host_of: list[int]
    serves_from: list[int]
    serves: list[int]
    event_s: list[float]
    event_users: list[int]
    event_start: list[int]
    event_entry: list[int]
    entry_priority: list[int]
    start_from: list[int]
    start_type: list[int]
    slots: list[int]
    tick_s: list[float]
    limit: list[int]
    limit_users: list[int]
    period_s: list[float]
    type_queue: list[int]
    type_priority: list[int]
    type_timeout_s: list[float]
    type_cpu_s: list[float]
    type_user_cpu_s: list[float]
    type_batch: list[int]
    type_page: list[int]
    type_to: list[int]
    type_ledger: list[int]
    type_waits: list[int]
    type_offset: list[int]
    type_lanes: list[int]
    type_attempts: list[int]
    type_jitter: list[int]
    type_delays: list[int]
    delays_s: list[float]
    follow_from: list[int]
    follow: list[int]
    type_pays: list[int]
    type_open_s: list[float]
    type_open_user_s: list[float]
    type_flush_s: list[float]
    type_flush_user_s: list[float]
    type_page_cpu_s: list[float]
    type_batch_cpu_s: list[float]
    type_page_s: list[float]
    type_page_user_s: list[float]
    slowness: float
    trip_s: float
    broker_cpu_s: float
    broker_job_cpu_s: float
    client_cpu_s: float
    queue_cpu_s: float
    handing_s: float
    switch_s: float
    cold_s: float
    clock_s: float
    clock_phase_s: float
    wake_s: float
    announce_s: float
    enqueue_s: float
    resolution_s: float
    overshoot_s: float


def flatten(
    topology: Topology,
    deployment: Deployment,
    costs: Costs,
    arrivals: Sequence[Arrival],
    seed: int,
    relieved: str,
    tick_phase_s: float,
    deadline_s: float | None,
) -> Tables:
    """The tables of one run; `relieved` as in `sim.engine.model.Model`."""
    served = deployment.processes(topology)
    cores = (deployment.cores or costs.cores) * (2 if relieved == "cores" else 1)
    queue_of = {name: n for n, name in enumerate(topology.queues)}
    type_of = {name: n for n, name in enumerate(topology.job_types)}
    types, charged = topology.job_types.values(), [costs.types[name] for name in topology.job_types]
    limits = [queue.rate_limit for queue in topology.queues.values()]
    half = 0.5 if relieved == "broker" else 1.0
    sizes = [arrival.users for arrival in arrivals]
    places = {name: n * sum(sizes) for n, name in enumerate(providers_used(topology))}
    entries = list({id(arrival.entry): arrival.entry for arrival in arrivals}.values())
    entry_of = {id(entry): n for n, entry in enumerate(entries)}
    starts = [[type_of[name] for name in topology.starts(entry)] for entry in entries]
    follows = [[type_of[edge.to] for edge in job.follow_up] for job in types]
    delays = [job.retry.schedule() for job in types]
    worker_queues = [[queue_of[name] for name in names] for _ in range(deployment.hosts) for names in served]
    slots = [deployment.slots(topology, name) * (2 if relieved == "slots" else 1) for name in topology.queues]
    lanes = [max((j.send_concurrency for j in types if j.queue == name), default=1) for name in topology.queues]
    return Tables(
        seed=seed & (2**64 - 1),
        deadline_s=-1.0 if deadline_s is None else float(deadline_s),
        tick_phase_s=float(tick_phase_s),
        jobs=1 + sum(_jobs(topology, name, a.users) for a in arrivals for name in topology.starts(a.entry)),
        attempts=0,
        nodes=0,
        lanes=16 + sum(2 + slots[queue] * lanes[queue] for queue in _joined(worker_queues)),
        workers=len(worker_queues),
        queues=len(queue_of),
        hosts=deployment.hosts,
        servers=2 if relieved == "loop" else 1,
        cores=cores,
        stretch=Host(cores, costs.crowded, len(served)).stretch,
        host_of=[host for host in range(deployment.hosts) for _ in served],
        serves_from=_from(worker_queues),
        serves=_joined(worker_queues),
        event_s=[arrival.at_s - arrivals[0].at_s for arrival in arrivals],
        event_users=sizes,
        event_start=[*accumulate(sizes, initial=0)],
        event_entry=[entry_of[id(arrival.entry)] for arrival in arrivals],
        entry_priority=[int(entry.priority or 0) for entry in entries],
        start_from=_from(starts),
        start_type=_joined(starts),
        slots=slots,
        tick_s=[queue.tick_s for queue in topology.queues.values()],
        limit=[limit.limit * (2 if relieved == "rate_limit" else 1) if limit else 0 for limit in limits],
        limit_users=[int(limit is not None and limit.unit == "users") for limit in limits],
        period_s=[limit.period_s if limit else 0.0 for limit in limits],
        type_queue=[queue_of[job.queue] for job in types],
        type_priority=[int(job.priority) for job in types],
        type_timeout_s=[job.timeout_s for job in types],
        type_cpu_s=[c.job_cpu_s + job.cpu_us * 1e-6 * costs.cpu_scale for job, c in zip(types, charged, strict=True)],
        type_user_cpu_s=[
            c.user_cpu_s if job.fan_out else c.user_cpu_s + job.per_user.cpu_us * 1e-6 * costs.cpu_scale
            for job, c in zip(types, charged, strict=True)
        ],
        type_batch=[job.fan_out.batch_size if job.fan_out else 0 for job in types],
        type_page=[_page(job) for job in types],
        type_to=[type_of[job.fan_out.to] if job.fan_out else -1 for job in types],
        type_ledger=[int(job.per_user.database == "ledger") for job in types],
        type_waits=[int(job.per_user.provider is not None) for job in types],
        type_offset=[places[job.per_user.provider] if job.per_user.provider else 0 for job in types],
        type_lanes=[job.send_concurrency for job in types],
        type_attempts=[job.retry.max_attempts for job in types],
        type_jitter=[JITTERS.index(job.retry.jitter) for job in types],
        type_delays=_from(delays),
        delays_s=[*map(float, _joined(delays))],
        follow_from=_from(follows),
        follow=_joined(follows),
        type_pays=[int(job.work == "payment") for job in types],
        type_open_s=[c.open_s for c in charged],
        type_open_user_s=[c.open_user_s for c in charged],
        type_flush_s=[c.flush_s for c in charged],
        type_flush_user_s=[c.flush_user_s for c in charged],
        type_page_cpu_s=[c.page_cpu_s for c in charged],
        type_batch_cpu_s=[c.batch_cpu_s for c in charged],
        type_page_s=[c.page_s for c in charged],
        type_page_user_s=[c.page_user_s for c in charged],
        slowness=0.5 if relieved == "database" else 1.0,
        trip_s=(costs.broker_wire_s + deployment.network_round_trip_ms / 1e3) / 2,
        broker_cpu_s=costs.broker_cpu_s * half,
        broker_job_cpu_s=costs.broker_job_cpu_s * half,
        client_cpu_s=costs.client_cpu_s,
        queue_cpu_s=costs.queue_cpu_s,
        handing_s=costs.handing_s,
        switch_s=costs.switch_s,
        cold_s=costs.cold_s,
        clock_s=costs.broker_clock_s,
        clock_phase_s=uniform(seed, Stream.JITTER, 0, 2) * costs.broker_clock_s,
        wake_s=costs.wake_s,
        announce_s=costs.announce_s,
        enqueue_s=costs.enqueue_s,
        resolution_s=costs.timer_resolution_s,
        overshoot_s=costs.timer_overshoot_s,
    )


def providers_used(topology: Topology) -> list[str]:
    """The providers that some job type sends through, in the order of their draws."""
    return [*dict.fromkeys(job.per_user.provider for job in topology.job_types.values() if job.per_user.provider)]


def _jobs(topology: Topology, name: str, users: int) -> int:
    """How many jobs a started type makes of an event's users, with all that follow."""
    fan_out = topology.job_types[name].fan_out
    if fan_out:
        return 1 + -(-users // fan_out.batch_size) * _line(topology, fan_out.to)
    return users * _line(topology, name)


def _line(topology: Topology, name: str) -> int:
    return 1 + sum(_line(topology, edge.to) for edge in topology.job_types[name].follow_up)


def _page(job: JobType) -> int:
    fan_out = job.fan_out
    return max(1, fan_out.page_size // fan_out.batch_size) * fan_out.batch_size if fan_out else 0


def _from(lists: Sequence[Sequence[Any]]) -> list[int]:
    return [*accumulate(map(len, lists), initial=0)]


def _joined(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [value for values in lists for value in values]
