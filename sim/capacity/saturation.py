"""What a deployment can serve at most: its rate while jobs always wait, and whether a steady stream outruns it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from math import ceil

import numpy as np
import pandas as pd

from saqkit.spec.topology import Entry, Topology
from saqkit.spec.workload import Burst, Recorded, Scheduled, Workload, entry_of
from sim.capacity.limits import offered_users_per_s
from sim.prediction import predict
from sim.running.combination import Combination
from sim.running.scenario import Scenario

ROUNDS = 8  # so many jobs for each slot: beginning and end of the drain are left out
MOST_USERS = 1_000_000


@dataclass(frozen=True)
class Saturated:
    """One noise-free run in which all users arrive at once."""

    cell: Combination

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """Its attempts table."""
        return self.cell.outcomes[0].attempts()

    @property
    def users_per_s(self) -> float:
        """Users served a second."""
        served = self.attempts[self.attempts["users_done"] > 0]
        return _middle_rate(served, served["users_done"])

    def jobs_per_s(self, queue: str) -> float:
        """Jobs that leave `queue` a second, attempts counted."""
        rows = self.attempts[self.attempts["queue"] == queue]
        return _middle_rate(rows, pd.Series(1.0, index=rows.index))

    @property
    def bottleneck(self) -> str:
        """The part that holds it up."""
        return self.cell.bottlenecks[0]


def saturated(scenario: Scenario) -> Saturated:
    """`scenario` with as many of its arrivals as it takes, all at once, without faults."""
    topology, deployment = scenario.topology, scenario.deployment
    slots = deployment.hosts * sum(
        deployment.slots(topology, queue) for queues in deployment.processes(topology) for queue in queues
    )
    batch = max((job.fan_out.batch_size for job in topology.job_types.values() if job.fan_out), default=1)
    arrivals = scenario.workload.arrivals
    each = [users for _, users in islice(scenario.workload.times(topology, scenario.seed), 10_000) if users] or [1]
    if isinstance(arrivals, Scheduled):
        topology = _entered_as_scheduled(scenario)
    burst = isinstance(arrivals, Burst)
    batch = batch if burst else min(batch, max(each))
    entries = [entry_of(topology, scenario.seed, 1)] if burst else topology.entry
    fewest = _users_that_fill(scenario, topology, entries, batch)
    wanted = min(MOST_USERS, max(500, min(ROUNDS * slots * batch, fewest)))
    if burst:
        sizes = [wanted]
    else:
        sizes, total = [], 0
        for users in cycle(each):
            if total >= wanted:
                break
            sizes.append(users)
            total += users
    at_once = Workload(arrivals=Recorded(at_s=(0.0,) * len(sizes), users=tuple(sizes)))
    forecast = predict(
        topology,
        workload=at_once,
        deployment=deployment,
        profile=scenario.profile,
        seed=scenario.seed,
        replications=1,
        same_draw=True,
        queue=scenario.queue,
    )
    return Saturated(forecast.combinations[0])


def _users_that_fill(scenario: Scenario, topology: Topology, entries: Sequence[Entry], most: int) -> int:
    """Users who make `ROUNDS` jobs for each slot of every queue where they have any; batches are of at most `most`."""
    jobs = defaultdict[str, float](float)  # per user, by queue
    shares = sum(entry.share for entry in entries)

    def count(name: str, share: float, size: int) -> None:
        job = topology.job_types[name]
        if job.fan_out:
            count(job.fan_out.to, share, min(job.fan_out.batch_size, most))
            return
        jobs[job.queue] += share / size
        for edge in job.follow_up:
            count(edge.to, share, size)

    for entry in entries:
        for name in topology.starts(entry):
            count(name, entry.share / shares, 1)
    processes = scenario.deployment.processes(topology)
    slots = {queue: scenario.deployment.hosts * sum(queue in served for served in processes)
             * scenario.deployment.slots(topology, queue) for queue in jobs}  # fmt: skip
    return ceil(max((ROUNDS * slots[queue] / each for queue, each in jobs.items()), default=0.0))


def _entered_as_scheduled(scenario: Scenario) -> Topology:
    """The topology in which all users come in as those of the scenario's schedules do, and of what comes besides."""
    events = islice(scenario.workload.events(scenario.topology, scenario.seed), 10_000)
    shares = Counter(arrival.entry.model_copy(update={"share": 1.0}) for arrival in events if arrival.users)
    entries = [entry.model_copy(update={"share": n / shares.total()}) for entry, n in shares.items()]
    return scenario.topology.model_copy(update={"entry": tuple(entries or scenario.topology.entry)})


def load(scenario: Scenario) -> float:
    """The load ρ of a steady stream: users arriving over users served when saturated; 0 where nothing is steady.

    At ρ ≥ 1 the backlog grows for as long as the stream lasts, so that what a run of finite length shows says nothing.
    """
    offered = offered_users_per_s(scenario.workload)
    return 0.0 if offered is None else offered / saturated(replace(scenario, same_draw=True)).users_per_s


def _middle_rate(rows: pd.DataFrame, weights: pd.Series) -> float:
    """Weight per second between 10 % and 90 % of what finished: the slope of a line, because batches end in lumps."""
    order = np.argsort(rows["finished_at"].to_numpy(float), kind="stable")
    times, done = rows["finished_at"].to_numpy(float)[order], weights.to_numpy(float)[order].cumsum()
    middle = (done >= 0.1 * done[-1]) & (done <= 0.9 * done[-1]) if len(done) else np.zeros(0, bool)
    if middle.sum() < 2 or np.ptp(times[middle]) == 0:
        return float("inf") if len(done) else 0.0
    count = done[middle] - done[middle].mean()
    return float((count * count).sum() / (count * times[middle]).sum())
