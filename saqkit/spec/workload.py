"""What arrives and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from saqkit.errors import DescriptionError
from saqkit.spec.arrivals import AnyArrivals, Arrivals, Burst, ClosedLoop, Poisson, Profile, Recorded, Users
from saqkit.spec.base import Part, did_you_mean
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import Entry, Topology

__all__ = [
    "AnyArrivals",
    "Arrival",
    "Arrivals",
    "BrokerRestart",
    "Burst",
    "ClosedLoop",
    "Fault",
    "KillWorker",
    "Poisson",
    "Profile",
    "ProviderOutage",
    "Recorded",
    "Users",
    "Workload",
    "entry_of",
]


@dataclass(frozen=True)
class Arrival:
    """`users` users arrive together, `at_s` seconds after the workload's start, through `entry`."""

    event: int
    at_s: float
    users: int
    entry: Entry


class KillWorker(Part):
    """SIGKILL worker process number `worker` `at_s` seconds after the first event; the launcher restarts it."""

    kind: Literal["kill_worker"] = "kill_worker"
    at_s: NonNegativeFloat
    worker: NonNegativeInt = Field(default=0, description="counted from 0 over the processes of all hosts")


class ProviderOutage(Part):
    """From `at_s` on, for `duration_s`, every send of `provider` is a temporary failure."""

    kind: Literal["provider_outage"] = "provider_outage"
    at_s: NonNegativeFloat
    duration_s: PositiveFloat
    provider: str


class BrokerRestart(Part):
    """The broker is stopped `at_s` seconds after the first event and started again `down_s` later."""

    kind: Literal["broker_restart"] = "broker_restart"
    at_s: NonNegativeFloat
    down_s: NonNegativeFloat = 1.0


Fault = Annotated[KillWorker | ProviderOutage | BrokerRestart, Field(discriminator="kind")]


class Workload(Part):
    """What arrives (`arrivals`) and what goes wrong (`faults`, at times after the first event)."""

    arrivals: Arrivals
    faults: tuple[Fault, ...] = ()

    @classmethod
    def burst(cls, users: int) -> Workload:
        """`users` users at once; `users=N` is short for this everywhere."""
        return cls(arrivals=Burst(users=users))

    @classmethod
    def from_file(cls, path: str | Path) -> Workload:
        """A workload file (TOML), or a recorded trace (`.csv`, see `Recorded.from_csv`)."""
        if Path(path).suffix.lower() == ".csv":
            return cls(arrivals=Recorded.from_csv(path))
        return cls.from_toml(path)

    def events(self, topology: Topology, seed: int) -> Iterator[Arrival]:
        """The arrivals in order of time, numbered from 1; which entry each takes follows the entries' shares.

        Of a closed loop the first event of each client: the others depend on the system.
        """
        what = self.arrivals
        named = what.arrivals() if isinstance(what, Recorded) else ((*one, "") for one in what.times(seed))
        for event, (at_s, users, name) in enumerate(named, start=1):
            yield Arrival(event, at_s, users, entry_of(topology, seed, event, name))

    def check(self, topology: Topology, deployment: Deployment) -> None:
        """Raise `DescriptionError` where the entry of an arrival, or what a fault hits, does not exist."""
        known = {name for entry in topology.entry for name in (entry.topic, entry.job_type) if name is not None}
        for n, name in enumerate(self.arrivals.entries if isinstance(self.arrivals, Recorded) else ()):
            if name not in known:
                raise DescriptionError(f'no entry of topology {topology.name} has a topic or job type "{name}"',
                                       key=f"arrivals.entries.{n}", value=name,
                                       hint=did_you_mean(name, known))  # fmt: skip
        processes = deployment.hosts * len(deployment.processes(topology))
        for n, fault in enumerate(self.faults):
            if isinstance(fault, ProviderOutage) and fault.provider not in topology.providers:
                raise DescriptionError(f'there is no provider "{fault.provider}" in topology {topology.name}',
                                       key=f"faults.{n}.provider", value=fault.provider,
                                       hint=did_you_mean(fault.provider, topology.providers))  # fmt: skip
            if isinstance(fault, KillWorker) and fault.worker >= processes:
                raise DescriptionError(f"there is no worker process {fault.worker}: the deployment has {processes}",
                                       key=f"faults.{n}.worker", value=fault.worker,
                                       hint=f"they are numbered from 0 to {processes - 1}")  # fmt: skip


def entry_of(topology: Topology, seed: int, event: int, name: str = "") -> Entry:
    """Which entry an event takes: as the draw says, by their shares; with a `name`, among those of that name."""
    entries: Sequence[Entry] = [e for e in topology.entry if name in (e.topic, e.job_type)] if name else topology.entry
    if len(entries) == 1:
        return entries[0]  # whatever is drawn
    u = uniform(seed, Stream.ARRIVAL, event, user=1)
    if name:
        u *= sum(entry.share for entry in entries)
    for entry in entries:
        if u < entry.share:
            return entry
        u -= entry.share
    return entries[-1]
