"""What the fast engine does not do and only the SimPy model does, and what neither does."""

from __future__ import annotations

from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import ClosedLoop, Scheduled, Workload
from sim.engine.choosing_line import KEYS, choosing_field
from sim.engine.ledger import shared_channels, ways


def beyond_the_model(topology: Topology) -> str:
    """Why neither engine can simulate this, in words; empty if one can."""
    for name, queue in topology.queues.items():
        for n, limit in enumerate(queue.running_limits):
            if limit.key not in KEYS:
                known = f"{', '.join(KEYS[:-1])} and {KEYS[-1]}"
                return f'queues.{name}.running_limits.{n}.key: jobs in the model have {known}, but no "{limit.key}"'
    return ""


def beyond_fast(topology: Topology, deployment: Deployment, workload: Workload, queue: str = "saqkit") -> str:
    """Why the fast engine cannot simulate this, in words; empty if it can. `queue`: see `Scenario`."""
    if queue != "saqkit":
        return "the queue is stock SAQ's"
    for name, described in topology.queues.items():
        if field := choosing_field(described):
            return f"queue {name} has {field.replace('_', ' ')}"
    if workload.faults:
        return f"a fault is to happen ({workload.faults[0].kind.replace('_', ' ')})"
    for name, provider in topology.providers.items():
        if provider.guarded:
            return f"provider {name} has a rate, a number of connections or a circuit breaker"
    for name, job in topology.job_types.items():
        if job.fan_out and job.fan_out.calls_back:
            return f"the batch of {name} calls back"
    for name in sorted(_in_batches(topology)):
        job = topology.job_types[name]
        if job.work == "payment" and job.follow_up:
            return f"a job of {name} pays for several orders"
    for name in topology.providers:
        works = {job.work for job in topology.job_types.values() if job.per_user.provider == name}
        if len(works) > 1:
            return f"provider {name} has both messages and payments"
    for channel, names in shared_channels(topology).items():
        return f"jobs of {' and '.join(names)} share the ledger's rows of channel {channel}"
    for name, count in ways(topology).items():
        if count > 1:
            return f"{count} ways lead to jobs of {name}"
    if isinstance(workload.arrivals, ClosedLoop):
        return "the clients of a closed loop send when they are served"
    if isinstance(workload.arrivals, Scheduled):
        for schedule in topology.schedules:
            if schedule.audience is None:
                return f"schedule {schedule.name} starts jobs without users"
    return ""


def _in_batches(topology: Topology) -> set[str]:
    """The job types whose jobs may have several users."""
    fans = [job.fan_out for job in topology.job_types.values() if job.fan_out]
    left, found = [fan.to for fan in fans if fan.batch_size > 1], set[str]()
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [edge.to for edge in topology.job_types[name].follow_up]
    return found
