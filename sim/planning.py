"""`sim.plan`: the smallest deployment that meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from saqkit.errors import DescriptionError
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Workload
from sim.capacity.autoscaling import Trigger, trigger_of
from sim.capacity.frontier import Evaluated, evaluate, frontier
from sim.capacity.limits import best_rate, best_time
from sim.capacity.saturation import saturated
from sim.capacity.search import Choice, Search
from sim.capacity.waiting import low_wait_s, oldest_age
from sim.fit.profile import Profile
from sim.prediction import Prediction
from sim.running.scenario import profile_of
from sim.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Plan:
    """The smallest deployment found: fewest workers, then fewest slots, then the batch size nearest to its own.

    `probability` is that of one run's meeting the target, `headroom` the share of the target that the mean leaves
    unused, `cost_per_hour` workers × hosts × price, `cost_per_million_users` that price over the users served
    meanwhile. `oldest_age_s` is the greatest age that the oldest waiting job reaches in a run (`{mean, lo, hi, mean_lo,
    mean_hi}`), `low_wait_s` how long jobs of priority low wait (`{p50, p95, max}`, None without such jobs), `trigger`
    when an autoscaler has to start one more worker (None if the target is not met). Of a stream, latencies and waits
    are those of its steady part. Where nothing is feasible the settings are those of the best that was tried.
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
    cost_per_million_users: float
    oldest_age_s: dict[str, float]
    low_wait_s: dict[str, float] | None
    trigger: Trigger | None
    prediction: Prediction = field(repr=False)
    draw_frontier: Callable[[], pd.DataFrame] = field(repr=False)

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """The frontier of cost against time: a row per deployment that no cheaper one beats, cheapest first.

        Columns: workers, concurrency, batch_size, cost_per_hour, cost_per_million_users, time_s (mean of the target's
        measure), probability. It is searched for when it is first asked for, which takes longer than the plan itself.
        """
        return self.draw_frontier()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON types (null for what is undefined)."""
        left_out = ("prediction", "draw_frontier", "frontier", "trigger")
        plain = {name: _plain(value) for name, value in vars(self).items() if name not in left_out}
        return {**plain, "trigger": self.trigger.to_dict() if self.trigger else None}

    def summary(self) -> pd.DataFrame:
        """One row, the keys of `to_dict`; those of tables in it as `oldest_age_s.mean`."""
        return pd.json_normalize(self.to_dict())

    def plot(self, ax: Axes | None = None) -> Axes:
        """What the target is about, with the target as a line: users done over time, or the latencies of a stream."""
        from sim.pictures import drain_to_target, latency_distribution

        target, cell = Target.parse(self.target), self.prediction.combinations[0]
        if cell.scenario.workload.arrivals.kind == "burst" or target.metric in ("drain", "wait_p95"):
            return drain_to_target(cell, target.bound_s, self.target, ax)
        return latency_distribution(cell, target_s=target.bound_s, ax=ax)

    def plot_frontier(self, ax: Axes | None = None) -> Axes:
        """The frontier of cost against time, with this plan and its target marked."""
        from sim.pictures import cost_frontier

        target = Target.parse(self.target)
        return cost_frontier(self.frontier, target.bound_s, f"{target.metric} in seconds", self.workers, ax)

    def __repr__(self) -> str:
        head = "feasible" if self.feasible else "not feasible"
        return (
            f"Plan({self.target}: {head}, {self.workers} workers × {self.concurrency} slots, batch {self.batch_size}, "
            f"probability {self.probability:.2f}, bottleneck {self.bottleneck}; {self.reason})"
        )

    def _repr_html_(self) -> str:
        return self.summary().T.to_html(header=False, float_format="{:.4g}".format)


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
    given. `workload` may be a steady stream: a deployment that it outruns (ρ ≥ 1) never meets a target. `profile`: a
    `Profile`, the file of one, or None for a nominal host. `deployment` gives what is not searched (hosts, cores) and
    where to start. `progress(workers)` is told of each number of workers that is tried. Raises `DescriptionError` for
    a target that cannot be read and for numbers out of range.
    """
    aim = Target.parse(target)
    described = topology if isinstance(topology, Topology) else load(topology)
    if (users is None) == (workload is None):
        raise DescriptionError("a plan needs either users or a workload", key="users")
    for name, value in (("max_workers", max_workers), ("replications", replications)):
        if value < 1:
            raise DescriptionError(f"must be at least 1 (given: {value})", key=name, value=value)
    if not 0 <= price_per_worker_hour < math.inf:
        raise DescriptionError(f"a price is a number from 0 on (given: {price_per_worker_hour})",
                               key="price_per_worker_hour", value=price_per_worker_hour)  # fmt: skip
    arriving = workload if workload is not None else Workload.burst(int(users or 0))
    search = Search(described, arriving, aim, profile_of(profile), deployment or Deployment(), seed)

    def evaluated(workers: int, choice: Choice) -> Evaluated:
        return evaluate(search, workers, choice, price_per_worker_hour, replications)

    def draw() -> pd.DataFrame:
        return frontier(search, max_workers, price_per_worker_hour, replications)

    for workers in search.counts(max_workers, progress):
        for choice in search.might_meet(workers):
            found = evaluated(workers, choice)
            if found.probability >= aim.probability:
                return _plan(search, found, workers, "", draw)
    choice, why = _nearest(search, max_workers)
    found = evaluated(max_workers, choice)
    if not why:
        why = (
            f"no deployment of up to {max_workers} workers meets this: the best tried gives "
            f"{_mean_against_bound(aim, found)}, held up by {found.cell.bottlenecks[0]}"
        )
    return _plan(search, found, max_workers, why, draw)


def _plan(
    search: Search, found: Evaluated, workers: int, why_not: str, draw_frontier: Callable[[], pd.DataFrame]
) -> Plan:
    cell, aim = found.cell, search.target
    tables = [outcome.attempts() for outcome in cell.outcomes]
    first, second = cell.bottlenecks[:2]
    return Plan(
        feasible=not why_not,
        workers=workers,
        concurrency=cell.settings["concurrency"],
        batch_size=cell.settings["batch_size"],
        cost_per_hour=found.cost_per_hour,
        probability=found.probability,
        headroom=1 - found.time_s / aim.bound_s,
        bottleneck=first,
        next_bottleneck=second,
        reason=why_not or _mean_against_bound(aim, found),
        target=str(aim),
        cost_per_million_users=found.cost_per_million_users,
        oldest_age_s=oldest_age(tables, search.profile.residual),
        low_wait_s=low_wait_s(tables),
        trigger=None if why_not else trigger_of(cell.scenario, workers, aim, tables[0]),
        prediction=Prediction([cell]),
        draw_frontier=draw_frontier,
    )


def _mean_against_bound(aim: Target, found: Evaluated) -> str:
    return f"{aim.metric} is {found.time_s:.3g} s on average, {aim.bound_s:g} s are allowed"


def _nearest(search: Search, most: int) -> tuple[Choice, str]:
    """Of what `most` workers can do, the choice that comes nearest, and why none meets the target, if it is known."""
    if offered := search.offered:
        choice = min(search.choices(), key=lambda one: search.load(most, one))
        if search.load(most, choice) < 1:
            return choice, ""
        hard, who = best_rate(search.scenario(most, choice)), "no deployment"
        part, best = f"the {hard.why}", hard.users_per_s
        if hard.users_per_s > offered:
            full = saturated(search.scenario(most, choice))
            who, part, best = f"{who} of up to {most} workers", f"the bottleneck ({full.bottleneck})", full.users_per_s
        return choice, (
            f"{who} meets this: {offered:.3g} users/s arrive, {part} allows at best {best:.3g}: "
            "the backlog grows without end"
        )
    tried = [(best_time(search.scenario(most, choice), search.target.share), choice) for choice in search.choices()]
    best_limit, choice = min(tried, key=lambda one: one[0].best_s)
    if best_limit.best_s <= search.target.bound_s:
        return choice, ""
    if best_limit.is_of_deployment:
        who = f"no deployment of up to {most} workers"
        return choice, f"{who} meets this: their {best_limit.why} allow at best {best_limit.best_s:.3g} s"
    return choice, f"no deployment meets this: the {best_limit.why} allows at best {best_limit.best_s:.3g} s"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
