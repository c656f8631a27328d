"""Where it runs: hosts, cores, worker processes, slots, broker and database."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from saqkit.errors import DescriptionError
from saqkit.spec.base import Part, acts_in_real, did_you_mean
from saqkit.spec.topology import Topology


class Group(Part):
    """Worker processes that serve some queues only."""

    queues: tuple[str, ...] = Field(min_length=1)
    processes: PositiveInt = 1


class Deployment(Part):
    """Where it runs.

    `workers` is the number of worker processes on each host, each serving every queue; `groups` replaces it where some
    processes serve some queues only. `concurrency` overrides the topology's slots per process: one number for every
    queue, or a number per queue.
    """

    hosts: PositiveInt = 1
    cores: PositiveInt | None = Field(default=None, description="per host; default: those of the profile's host")
    workers: PositiveInt = 1
    groups: tuple[Group, ...] = ()
    concurrency: PositiveInt | dict[str, PositiveInt] | None = None
    network_round_trip_ms: Annotated[NonNegativeFloat, Field(description="between hosts and the broker")] = 0.0
    broker: str = Field(default="private", json_schema_extra=acts_in_real("an address has no duration"))
    database: str = Field(default="sqlite", json_schema_extra=acts_in_real("an address has no duration"))

    @model_validator(mode="after")
    def _no_network_on_one_host(self) -> Deployment:
        if self.network_round_trip_ms and self.hosts == 1:
            raise ValueError("network_round_trip_ms is between hosts: it needs hosts > 1")
        return self

    @model_validator(mode="after")
    def _groups_replace_workers(self) -> Deployment:
        if self.groups and self.workers != 1:
            raise ValueError("workers means nothing with groups: each group says its number of processes")
        for n, group in enumerate(self.groups):
            if len(set(group.queues)) < len(group.queues):
                raise ValueError(f"groups.{n}.queues names a queue twice")
        return self

    def processes(self, topology: Topology) -> list[tuple[str, ...]]:
        """The queues that each worker process of one host serves, a tuple per process."""
        if not self.groups:
            return [tuple(topology.queues)] * self.workers
        return [group.queues for group in self.groups for _ in range(group.processes)]

    def slots(self, topology: Topology, queue: str) -> int:
        """Slots of `queue` in each process that serves it."""
        if isinstance(self.concurrency, int):
            return self.concurrency
        return (self.concurrency or {}).get(queue, topology.queues[queue].concurrency)

    def check(self, topology: Topology) -> None:
        """Raise `DescriptionError` where this deployment names queues that `topology` lacks, or leaves one unserved."""
        named = [("concurrency", name) for name in self.concurrency] if isinstance(self.concurrency, dict) else []
        named += [(f"groups.{n}.queues", name) for n, group in enumerate(self.groups) for name in group.queues]
        for key, name in named:
            if name not in topology.queues:
                raise DescriptionError(f'there is no queue "{name}" in topology {topology.name}', key=key, value=name,
                                       hint=did_you_mean(name, topology.queues))  # fmt: skip
        served = {queue for queues in self.processes(topology) for queue in queues}
        for name in sorted(set(topology.queues) - served):
            raise DescriptionError(f'no process serves queue "{name}"', key="groups", value=name,
                                   hint="add it to the queues of a group")  # fmt: skip
