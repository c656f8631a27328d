"""What the fast engine does not do, and only the SimPy model does."""

from __future__ import annotations

from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import ClosedLoop, Workload


def beyond_fast(topology: Topology, deployment: Deployment, workload: Workload, queue: str = "saqkit") -> str:
    """Why the fast engine cannot simulate this, in words; empty if it can. `queue`: see `Scenario`."""
    if queue != "saqkit":
        return "the queue is stock SAQ's"
    if workload.faults:
        return f"a fault is to happen ({workload.faults[0].kind.replace('_', ' ')})"
    for name, provider in topology.providers.items():
        if provider.guarded:
            return f"provider {name} has a rate, a number of connections or a circuit breaker"
    if isinstance(workload.arrivals, ClosedLoop):
        return "the clients of a closed loop send when they are served"
    return ""
