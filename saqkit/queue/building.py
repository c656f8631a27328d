"""The queues of a topology."""

from __future__ import annotations

from saqkit.queue.queue import Queue
from saqkit.spec.topology import Topology


def build_queues(topology: Topology, url: str, *, seed: int = 0, prefix: str = "") -> dict[str, Queue]:
    """A queue per name of the topology, each with its own connections to the broker at `url`.

    `prefix` is put before the queues' names in the broker, so that a run on a shared server meets nobody else's keys.
    """
    return {
        name: Queue.from_url(
            url,
            name=f"{prefix}{name}",
            rate_limit=spec.rate_limit,
            policies={job: j.retry for job, j in topology.job_types.items() if j.queue == name},
            lease_s=spec.lease_s,
            sweep_s=spec.sweep_s,
            tick_s=spec.tick_s,
            dead_retention_s=spec.dead_retention_s,
            seed=seed,
        )
        for name, spec in topology.queues.items()
    }
