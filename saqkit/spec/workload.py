"""What arrives and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from saqkit.errors import DescriptionError
from saqkit.spec.base import Part, did_you_mean
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import Entry, Topology

# The attempts table counts users in 32 bits.
Users = Annotated[int, Field(gt=0, le=2_000_000_000)]


@dataclass(frozen=True)
class Arrival:
    """`users` users arrive together, `at_s` seconds after the workload's start, through `entry`."""

    event: int
    at_s: float
    users: int
    entry: Entry


class Burst(Part):
    """`users` users at once: one event to all of them."""

    kind: Literal["burst"] = "burst"
    users: Users

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival."""
        yield 0.0, self.users


class Poisson(Part):
    """Events of `users_per_event` users at random, `rate_per_s` events a second on average, for `duration_s`."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: PositiveFloat
    duration_s: PositiveFloat
    users_per_event: Users = 1

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival; gaps are exponential."""
        from math import log

        at, n = 0.0, 0
        while (at := at - log(uniform(seed, Stream.ARRIVAL, n)) / self.rate_per_s) < self.duration_s:
            yield at, self.users_per_event
            n += 1


class Profile(Part):
    """A daily pattern: `users_per_day`, spread over the hours by `hourly` (24 weights), for `days` days.

    Arrivals are a Poisson process whose rate is constant within an hour, of `users_per_event` users each.
    """

    kind: Literal["profile"] = "profile"
    users_per_day: PositiveInt
    hourly: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=24, max_length=24)]
    days: PositiveInt = 1
    users_per_event: Users = 1

    @model_validator(mode="after")
    def _some_weight(self) -> Profile:
        if sum(self.hourly) <= 0:
            raise ValueError("the 24 hourly weights must not all be 0")
        return self

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival, by inverting the cumulated rate."""
        from math import log

        total, per_day = sum(self.hourly), self.users_per_day / self.users_per_event
        work, done, hour, n = 0.0, 0.0, 0, 0  # cumulated expected events: asked for, and up to the hour's start
        while True:
            work -= log(uniform(seed, Stream.ARRIVAL, n))
            while work > done + (here := per_day * self.hourly[hour % 24] / total):
                done, hour = done + here, hour + 1
                if hour >= 24 * self.days:
                    return
            yield (hour + (work - done) / here) * 3600, self.users_per_event
            n += 1


class Recorded(Part):
    """A recorded trace: at `at_s[i]` seconds `users[i]` users arrive."""

    kind: Literal["recorded"] = "recorded"
    at_s: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    users: tuple[Users, ...] = ()

    @model_validator(mode="after")
    def _same_length(self) -> Recorded:
        if self.users and len(self.users) != len(self.at_s):
            raise ValueError(f"{len(self.at_s)} times and {len(self.users)} numbers of users: one number for each time")
        return self

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival, in order of time."""
        pairs = zip(self.at_s, self.users or (1,) * len(self.at_s), strict=True)
        yield from sorted(pairs, key=lambda pair: pair[0])


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


Arrivals = Annotated[Burst | Poisson | Profile | Recorded, Field(discriminator="kind")]
Fault = Annotated[KillWorker | ProviderOutage | BrokerRestart, Field(discriminator="kind")]


class Workload(Part):
    """What arrives (`arrivals`) and what goes wrong (`faults`, at times after the first event)."""

    arrivals: Arrivals
    faults: tuple[Fault, ...] = ()

    @classmethod
    def burst(cls, users: int) -> Workload:
        """`users` users at once; `users=N` is short for this everywhere."""
        return cls(arrivals=Burst(users=users))

    def events(self, topology: Topology, seed: int) -> Iterator[Arrival]:
        """The arrivals in order of time, numbered from 1; which entry each takes follows the entries' shares."""
        for event, (at_s, users) in enumerate(self.arrivals.times(seed), start=1):
            u, chosen = uniform(seed, Stream.ARRIVAL, event, user=1), topology.entry[-1]
            for entry in topology.entry:
                if u < entry.share:
                    chosen = entry
                    break
                u -= entry.share
            yield Arrival(event, at_s, users, chosen)

    def check(self, topology: Topology, deployment: Deployment) -> None:
        """Raise `DescriptionError` where a fault hits a provider or a worker process that does not exist."""
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
