"""What arrives and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from saqkit.errors import DescriptionError
from saqkit.spec.arrivals import AnyArrivals, Arrivals, Burst, ClosedLoop, Poisson, Profile, Recorded, Scheduled, Users
from saqkit.spec.base import Part, did_you_mean
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import Entry, ScheduledEntry, Topology

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
    "Scheduled",
    "Users",
    "Workload",
    "entry_of",
]


Came = tuple[float, int, str | Entry]
"""Seconds, users, and the entry through which they come, or its name, or ""."""


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

        Of a closed loop the first event of each client: the others depend on the system. What a schedule fires comes in
        through an entry of its own.
        """
        what = self.arrivals
        named = _of_schedules(what, topology, seed) if isinstance(what, Scheduled) else _named(what, seed)
        for event, (at_s, users, by) in enumerate(named, start=1):
            yield Arrival(event, at_s, users, by if isinstance(by, Entry) else entry_of(topology, seed, event, by))

    def times(self, topology: Topology, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each of `events`."""
        if isinstance(self.arrivals, Scheduled):
            return ((arrival.at_s, arrival.users) for arrival in self.events(topology, seed))
        return self.arrivals.times(seed)

    def check(self, topology: Topology, deployment: Deployment) -> None:
        """Raise `DescriptionError` where the entry of an arrival, or what a fault hits, does not exist."""
        known = {name for entry in topology.entry for name in (entry.topic, entry.job_type) if name is not None}
        trace, at = self.arrivals, "arrivals.entries"
        if isinstance(self.arrivals, Scheduled):
            _check_schedules(self.arrivals, topology)
            trace, at = self.arrivals.others or self.arrivals, "arrivals.others.entries"
        for n, name in enumerate(trace.entries if isinstance(trace, Recorded) else ()):
            if name not in known:
                raise DescriptionError(f'no entry of topology {topology.name} has a topic or job type "{name}"',
                                       key=f"{at}.{n}", value=name,
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


def _named(what: AnyArrivals, seed: int) -> Iterator[Came]:
    assert not isinstance(what, Scheduled)
    yield from what.arrivals() if isinstance(what, Recorded) else ((*one, "") for one in what.times(seed))


def _of_schedules(what: Scheduled, topology: Topology, seed: int) -> Iterator[Came]:
    """What fires, in the order of the file where it fires together, and then what comes besides."""

    def fired(schedule: ScheduledEntry) -> Iterator[Came]:
        users, entry = schedule.users or 0, schedule.entry()
        return ((at_s, users, entry) for at_s in what.within(schedule.firings(ceil(what.started_at) - 1)))

    besides = [_named(what.others, seed)] if what.others else []
    return merge(*map(fired, topology.schedules), *besides, key=lambda one: one[0])


def _check_schedules(what: Scheduled, topology: Topology) -> None:
    if not topology.schedules:
        raise DescriptionError(f"topology {topology.name} has no schedules", key="arrivals.kind", value="scheduled",
                               hint="say [[schedules]] in its file")  # fmt: skip
    for n, schedule in enumerate(topology.schedules):
        if schedule.audience is not None and schedule.users is None:
            raise DescriptionError("is missing: to play its firings, it must be known how many users they have",
                                   source=topology.name, key=f"schedules.{n}.users")  # fmt: skip
    from saqkit.spec.cron_line import zone_of

    firsts = [next(schedule.firings(ceil(what.started_at) - 1)) for schedule in topology.schedules]
    if what.others is None and min(firsts) - what.started_at >= what.duration_s:
        first = topology.schedules[firsts.index(min(firsts))]
        at = datetime.fromtimestamp(min(firsts), zone_of(first.zone)).isoformat()
        raise DescriptionError(f"no schedule of topology {topology.name} fires in this time", value=what.duration_s,
                               key="arrivals.duration_s", hint=f"the next is {first.name} at {at}")  # fmt: skip


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
