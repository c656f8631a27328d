"""`sim.plan`: the smallest deployment that meets a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saqkit.errors import DescriptionError
from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Burst, Workload
from sim.analysis.statistics import chance_below
from sim.fit.profile import Profile
from sim.prediction import Prediction, Scenario, deploy, predict, profile_of
from sim.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLOTS = (5, 10, 20, 50, 100)
BATCHES = (20, 50, 100, 200, 500)


@dataclass(frozen=True, eq=False)
class Plan:
    """The smallest deployment found: fewest workers, then fewest slots, then the batch size nearest to its own.

    `probability` is that of one run's meeting the target, `headroom` the share of the target that the mean leaves
    unused, `cost_per_hour` workers × hosts × price. Where nothing is feasible the settings are those of the best that
    was tried.
    """

    feasible: bool
    workers: int
    concurrency: Any
    batch_size: int
    cost_per_hour: float
    probability: float
    headroom: float
    bottleneck: str
    next_bottleneck: str
    reason: str
    target: str
    prediction: Prediction

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {k: v for k, v in vars(self).items() if k not in ("prediction",)}

    def summary(self) -> pd.DataFrame:
        """One row, the keys of `to_dict`."""
        return pd.DataFrame([self.to_dict()])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Users done over time at this deployment, with the target as a line; returns the Axes."""
        from saqkit.spec.pictures import GREEN
        from sim.pictures import drain_band

        target = Target.parse(self.target)
        ax = drain_band(self.prediction.combinations[0], ax)
        ax.axvline(target.bound_s, color=GREEN, linestyle="--", label=f"target {self.target}")
        ax.set_xlim(0, max(ax.get_xlim()[1], 1.05 * target.bound_s))
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
        return ax

    def __repr__(self) -> str:
        head = "feasible" if self.feasible else "not feasible"
        return (
            f"Plan({self.target}: {head}, {self.workers} workers × {self.concurrency} slots, batch {self.batch_size}, "
            f"probability {self.probability:.2f}, bottleneck {self.bottleneck}; {self.reason})"
        )

    def _repr_html_(self) -> str:
        return self.summary().T.to_html(header=False)


@dataclass(frozen=True)
class _Search:
    """What is fixed while workers, slots and batch size are tried."""

    topology: Topology
    workload: Workload
    target: Target
    profile: Profile
    deployment: Deployment
    seed: int

    def choices(self) -> list[tuple[int | None, int | None]]:
        """(slots, batch size), smallest change first; None is the deployment's and topology's own."""
        own_slots = max(self.deployment.slots(self.topology, queue) for queue in self.topology.queues)
        own_batch: list[int] = [job.fan_out.batch_size for job in self.topology.job_types.values() if job.fan_out]
        slots = [None, *(n for n in SLOTS if n > own_slots)]
        batches: list[int | None] = [None]
        if own_batch:
            near = float(min(own_batch))
            others = sorted((abs(float(np.log(n / near))), n) for n in BATCHES if {*own_batch} != {n})
            batches += [n for _, n in others]
        return [(c, b) for c in slots for b in batches]

    def scenario(self, workers: int, slots: int | None, batch: int | None) -> Scenario:
        topology = self.topology if batch is None else self.topology.with_batch_size(batch)
        return Scenario(topology, deploy(self.deployment, workers, slots), self.workload, self.profile, self.seed, True)

    def bound_s(self, scenario: Scenario) -> tuple[float, str]:
        """A time below which no run of a burst can stay, and why: the provider's work over the slots, or the rate
        limit.
        """
        arrivals = self.workload.arrivals
        if not isinstance(arrivals, Burst) or not self.target.share or len(self.topology.entry) > 1:
            return 0.0, ""
        users, best, why = self.target.share * arrivals.users, 0.0, ""
        topology, deployment = scenario.topology, scenario.deployment
        fans = [job for job in topology.job_types.values() if job.fan_out]
        if len(topology.starts(topology.entry[0])) != 1 or len(fans) != 1 or not fans[0].fan_out:
            return 0.0, ""
        job = topology.job_types[fans[0].fan_out.to]
        jobs = users / fans[0].fan_out.batch_size
        if job.per_user.provider:
            latency = topology.providers[job.per_user.provider].latency
            serving = sum(job.queue in queues for queues in deployment.processes(topology)) * deployment.hosts
            at_once = job.send_concurrency * serving * deployment.slots(topology, job.queue)
            best, why = 0.97 * users * float(latency.quantiles(_GRID).mean()) / at_once, "the slots"
        if limit := topology.queues[job.queue].rate_limit:
            weight = jobs if limit.unit == "jobs" else users
            if (limited := (ceil(weight / limit.limit) - 1) * limit.period_s) > best:
                best, why = limited, "the rate limit"
        return best, why

    def might_meet(self, workers: int) -> Iterator[tuple[int | None, int | None]]:
        """The choices that one noise-free run lets through, in order."""
        for slots, batch in self.choices():
            scenario = self.scenario(workers, slots, batch)
            if self.bound_s(scenario)[0] <= self.target.bound_s and self._passes(scenario):
                yield slots, batch

    def _passes(self, scenario: Scenario) -> bool:
        arrivals, share = self.workload.arrivals, self.target.share
        stops = isinstance(arrivals, Burst) and share > 0
        outcome = scenario.run(deadline_s=self.target.bound_s if stops else None)
        if outcome.drained or not stops:
            return trace.measures(outcome.attempts())[self.target.measure] <= self.target.bound_s
        served = sum(outcome.rows["users_done"]) + sum(outcome.rows["users_failed"])
        return bool(share < 1 and isinstance(arrivals, Burst) and served >= share * arrivals.users)


_GRID = (np.arange(1000) + 0.5) / 1000


def plan(
    topology: Topology | str | Path,
    users: int | None = None,
    target: str = "drain<=60s @ 0.9",
    *,
    workload: Workload | None = None,
    profile: Profile | str | Path | None = None,
    deployment: Deployment | None = None,
    price_per_worker_hour: float = 0.0,
    max_workers: int = 64,
    replications: int = 10,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Plan:
    """Search workers × slots × batch size, with the model, for the smallest deployment that meets `target`.

    `target` is `METRIC OP DURATION [@ PROBABILITY]`: metric `drain p50 p95 p99 wait_p95`, probability 0.9 if not
    given. `deployment` gives what is not searched (hosts, cores) and where to start. `progress(workers)` is told of
    each number of workers that is tried. Raises `DescriptionError` for a target that cannot be read.
    """
    aim = Target.parse(target)
    described = topology if isinstance(topology, Topology) else load(topology)
    if (users is None) == (workload is None):
        raise DescriptionError("a plan needs either users or a workload", key="users")
    for name, value in (("max_workers", max_workers), ("replications", replications)):
        if value < 1:
            raise DescriptionError(f"must be at least 1 (given: {value})", key=name, value=value)
    if price_per_worker_hour < 0:
        raise DescriptionError("must not be negative", key="price_per_worker_hour", value=price_per_worker_hour)
    arriving = workload if workload is not None else Workload.burst(int(users or 0))
    search = _Search(described, arriving, aim, profile_of(profile), deployment or Deployment(), seed)

    def evaluate(workers: int, slots: int | None, batch: int | None) -> Plan:
        return _evaluated(search, workers, slots, batch, price_per_worker_hour, replications)

    for workers in _counts(search, max_workers, progress):
        for slots, batch in search.might_meet(workers):
            found = evaluate(workers, slots, batch)
            if found.feasible:
                return found
    return _infeasible(search, max_workers, evaluate)


def _counts(search: _Search, most: int, progress: Callable[[int], None] | None) -> Iterator[int]:
    """Numbers of workers from the smallest that a noise-free run lets through, found by doubling and halving."""

    def passes(workers: int) -> bool:
        if progress:
            progress(workers)
        return next(search.might_meet(workers), None) is not None

    low, high = 0, 1
    while not passes(high):
        if high == most:
            return
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    # Meeting it once is not meeting it with the probability asked for: up to half as many workers again may be needed.
    yield from range(high, min(most, high + max(2, high // 2)) + 1)


def _evaluated(
    search: _Search, workers: int, slots: int | None, batch: int | None, price: float, replications: int
) -> Plan:
    scenario, aim = search.scenario(workers, slots, batch), search.target
    prediction = predict(
        scenario.topology,
        workload=search.workload,
        deployment=scenario.deployment,
        profile=search.profile,
        replications=replications,
        seed=search.seed,
    )
    cell = prediction.combinations[0]
    values = [found[aim.measure] for found in cell.replications]
    chance = chance_below(values, aim.bound_s, search.profile.residual)
    mean = cell.measures[aim.measure]["mean"]
    first, second = cell.bottlenecks[:2]
    return Plan(
        feasible=chance >= aim.probability,
        workers=workers,
        concurrency=cell.settings["concurrency"],
        batch_size=cell.settings["batch_size"],
        cost_per_hour=workers * scenario.deployment.hosts * price,
        probability=chance,
        headroom=1 - mean / aim.bound_s,
        bottleneck=first,
        next_bottleneck=second,
        reason=f"{aim.metric} is {mean:.3g} s on average, {aim.bound_s:g} s are allowed",
        target=str(aim),
        prediction=prediction,
    )


def _infeasible(search: _Search, most: int, evaluate: Callable[[int, int | None, int | None], Plan]) -> Plan:
    """The best that `most` workers can do, and why it is not enough."""
    tried = [(*search.bound_s(search.scenario(most, *choice)), choice) for choice in search.choices()]
    best_s, why, choice = min(tried, key=lambda one: one[0])
    found = evaluate(most, *choice)
    if best_s > search.target.bound_s and why == "the rate limit":
        reason = f"no deployment meets this: the rate limit allows at best {best_s:.3g} s"
    else:
        reason = (
            f"no deployment of up to {most} workers meets this: the best tried gives {found.reason}, "
            f"held up by {found.bottleneck}"
        )
    return Plan(**{**vars(found), "feasible": False, "reason": reason})
