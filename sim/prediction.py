"""`sim.predict`: what the described system will do, with intervals, for one deployment or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saqkit.errors import UsageError
from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Workload
from sim.analysis.statistics import LEAST, MOST, enough, intervals
from sim.engine.costs import PARTS
from sim.engine.model import Model
from sim.engine.outcome import Outcome
from sim.fit.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEXT_SEED = 0x2545F4914F6CDD1D  # odd, so that the seeds of 2^64 replications differ
TIES = ("rate_limit", "cores", "loop", "broker", "database", "slots", "provider")
"""Among parts whose relief helps alike, the one nearest to a hard limit is named first."""
SHOWN = ("users", "workers", "concurrency", "batch_size")
COLUMNS = {
    "makespan (s)": "makespan_s",
    "throughput (users/s)": "throughput_users_per_s",
    "latency p95 (s)": "latency_p95_s",
}
Concurrency = int | dict[str, int]


@dataclass(frozen=True)
class Scenario:
    """One fully described run to be simulated."""

    topology: Topology
    deployment: Deployment
    workload: Workload
    profile: Profile
    seed: int
    same_draw: bool = False
    tick_phase_s: float = 0.0

    def run(self, replication: int = 0, relieved: str = "", deadline_s: float | None = None) -> Outcome:
        """Simulate one replication; replication 0 uses the seed itself. A same-draw run has no noise of its own."""
        seed = self.seed + replication * NEXT_SEED
        noise = None if self.same_draw else np.random.default_rng([seed & (2**64 - 1), 1])
        costs = self.profile.costs(self.topology, noise)
        model = Model(self.topology, self.deployment, self.workload, costs, seed, relieved, self.tick_phase_s)
        return model.run(deadline_s)


@dataclass(frozen=True, eq=False)
class Combination:
    """One combination of settings: its replications' tables and measures."""

    settings: Mapping[str, Any]
    scenario: Scenario
    outcomes: tuple[Outcome, ...]
    replications: tuple[Mapping[str, float], ...]

    @cached_property
    def measures(self) -> dict[str, dict[str, float]]:
        """Each measure as `{mean, lo, hi, mean_lo, mean_hi}`."""
        residual = 0.0 if self.scenario.same_draw else self.scenario.profile.residual
        return {
            name: intervals([found[name] for found in self.replications], residual if name.endswith("_s") else 0.0)
            for name in trace.MEASURES
        }

    @cached_property
    def utilisation(self) -> dict[str, float]:
        """Share of each part's capacity that was used, mean over replications (see `Prediction`)."""
        return {part: float(np.mean([o.utilisation[part] for o in self.outcomes])) for part in PARTS}

    @cached_property
    def reliefs(self) -> dict[str, float]:
        """How much shorter (share of the makespan) the drain is with twice the capacity of each part.

        Replication 0 is run again for each part; parts that are hardly used cannot help and are not tried.
        """
        base = self.replications[0]["makespan_s"]
        gains = dict.fromkeys(PARTS, 0.0)
        for part in PARTS:
            if self.outcomes[0].utilisation[part] >= 0.02:
                attempts = self.scenario.run(relieved=part).attempts()
                gains[part] = 1 - trace.makespan_s(attempts) / base if base else 0.0
        return gains

    @property
    def bottlenecks(self) -> list[str]:
        """The parts from the worst bottleneck on, by what relief gains (to 2 % of the makespan).

        The provider's gain counts half: nobody queues there, so of the slots and the sends that fill them the slots are
        named, unless more of them would hardly help. Where no relief gains a tenth, parts hold each other up (as many
        saturated loops as cores): those that are over 80 % busy themselves come first.
        """
        busy, gains = self.outcomes[0].utilisation, {**self.reliefs, "provider": self.reliefs["provider"] / 2}
        jointly = max(gains.values()) < 0.1

        def rank(part: str) -> tuple[bool, float, int]:
            saturated = jointly and busy[part] > 0.8 and part not in ("slots", "provider")
            return not saturated, -round(gains[part] / 0.02), TIES.index(part)

        return sorted(PARTS, key=rank)

    def to_dict(self) -> dict[str, Any]:
        """Settings, measures, bottleneck and utilisation as plain JSON types (a percentile of nobody is null)."""
        numbers = {m: {k: None if v != v else v for k, v in found.items()} for m, found in self.measures.items()}
        return {**self.settings, **numbers, "bottleneck": self.bottlenecks[0], "utilisation": self.utilisation}


class Prediction:
    """Simulated runs of one or many combinations of settings.

    Intervals are of 90 %: `lo`, `hi` of one run, `mean_lo`, `mean_hi` of the mean. Utilisation is the share of a
    part's capacity that was used over the makespan: of slots, loops, cores, broker and database writer their time, of
    the rate limit its admissions, and of the provider, which keeps nobody waiting in line, the share of a slot's time
    spent there.
    """

    def __init__(self, combinations: Sequence[Combination]) -> None:
        self.combinations = tuple(combinations)

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """The attempts tables of all combinations, one after another; see `attempts_of`."""
        return pd.concat([self.attempts_of(n) for n in range(len(self.combinations))], ignore_index=True)

    def attempts_of(self, combination: int) -> pd.DataFrame:
        """The attempts table of one combination, all replications."""
        frames = [outcome.attempts(n) for n, outcome in enumerate(self.combinations[combination].outcomes)]
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """A row per combination: its settings, and columns (measure, mean | lo | hi | mean_lo | mean_hi)."""
        rows = [
            {("settings", k): v for k, v in c.settings.items()}
            | {(measure, k): v for measure, found in c.measures.items() for k, v in found.items()}
            for c in self.combinations
        ]
        return pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(rows[0]))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One object per combination: settings, each measure with its intervals, `bottleneck`, `utilisation`."""
        return [combination.to_dict() for combination in self.combinations]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Users done over time with the band of one run; over many combinations, time to drain against users."""
        from sim.pictures import drain_band, sweep

        if len(self.combinations) == 1:
            return drain_band(self.combinations[0], ax=ax)
        return sweep(self.combinations, ax=ax)

    def __len__(self) -> int:
        return len(self.combinations)

    def __iter__(self) -> Iterator[Combination]:
        return iter(self.combinations)

    def __repr__(self) -> str:
        lines = []
        for c in self.combinations:
            m = c.measures["makespan_s"]
            shown = ", ".join(f"{k} {c.settings[k]}" for k in SHOWN)
            lines.append(f"{shown}: {m['mean']:.2f} s to drain [{m['lo']:.2f}, {m['hi']:.2f}]")
        head = f"Prediction({self.combinations[0].settings['topology']}"
        return f"{head}: {lines[0]})" if len(lines) == 1 else "\n  ".join([head + ":", *lines]) + ")"

    def _repr_html_(self) -> str:
        rows = [
            {k: c.settings[k] for k in SHOWN} | {name: _shown(c.measures[key]) for name, key in COLUMNS.items()}
            for c in self.combinations
        ]
        title = f"Prediction of <code>{self.combinations[0].settings['topology']}</code>: mean [90 % of runs]"
        return f"<p>{title}</p>" + pd.DataFrame(rows).to_html(index=False)


def predict(
    topology: Topology | str | Path,
    *,
    users: int | Sequence[int] | None = None,
    workload: Workload | None = None,
    workers: int | Sequence[int] | None = None,
    concurrency: Concurrency | Sequence[Concurrency] | None = None,
    batch_size: int | Sequence[int] | None = None,
    deployment: Deployment | None = None,
    profile: Profile | str | Path | None = None,
    replications: int | None = None,
    seed: int = 0,
    same_draw: bool = False,
    tick_phase_s: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Simulate `topology` for every combination of the lists given.

    Either `users` (a burst of that size) or a whole `workload`. `workers` and `concurrency` default to the
    deployment's (1 process, the topology's slots). Without a profile a nominal host is simulated. `replications` are
    run until the relative 90 % half-width of the mean makespan is below 1 %, at least 5 and at most 20. `same_draw`:
    no noise but the draws of `seed`, those that a real run of the same seed uses. `progress(done, of)` is told of
    each combination.

    Raises `UsageError`, `DescriptionError` or `ProfileError` for what cannot be simulated.
    """
    described = topology if isinstance(topology, Topology) else load(topology)
    known = profile_of(profile)
    if (users is None) == (workload is None):
        raise UsageError("predict needs either users=N or workload=..., and not both")
    if replications is not None and replications < 1:
        raise UsageError(f"replications={replications}: at least 1")
    workloads = [workload] if workload is not None else [Workload.burst(n) for n in _listed(users)]
    cells = list(product(workloads, _listed(workers), _listed(concurrency), _listed(batch_size)))
    combinations: list[Combination] = []
    for arriving, processes, slots, batch in cells:
        shaped = described if batch is None else described.with_batch_size(batch)
        deployed = deploy(deployment, processes, slots)
        deployed.check(shaped)
        arriving.check(shaped, deployed)
        scenario = Scenario(shaped, deployed, arriving, known, seed, same_draw, tick_phase_s)
        combinations.append(_replicate(scenario, replications))
        if progress:
            progress(len(combinations), len(cells))
    return Prediction(combinations)


def profile_of(profile: Profile | str | Path | None) -> Profile:
    """A profile, or the file of one, or none: the nominal host."""
    if profile is None:
        return Profile.nominal()
    return profile if isinstance(profile, Profile) else Profile.load(profile)


def deploy(base: Deployment | None, workers: int | None, concurrency: Concurrency | None) -> Deployment:
    """`base` (default: one process) with other numbers of processes and slots."""
    changed: dict[str, Any] = (base or Deployment()).to_dict()
    if workers is not None:
        changed |= {"workers": workers, "groups": []}
    if concurrency is not None:
        changed["concurrency"] = concurrency
    return Deployment.parse(changed, "deployment")


def _replicate(scenario: Scenario, replications: int | None) -> Combination:
    outcomes: list[Outcome] = []
    found: list[dict[str, float]] = []
    while len(outcomes) < (replications or MOST):
        outcomes.append(scenario.run(len(outcomes)))
        found.append(trace.measures(outcomes[-1].attempts()))
        if replications is None and len(found) >= LEAST and enough([m["makespan_s"] for m in found]):
            break
    return Combination(_settings(scenario, len(outcomes)), scenario, tuple(outcomes), tuple(found))


def _settings(scenario: Scenario, replications: int) -> dict[str, Any]:
    topology, deployment = scenario.topology, scenario.deployment
    arrivals = scenario.workload.arrivals
    used = {queue for queues in deployment.processes(topology) for queue in queues}
    slots = {queue: deployment.slots(topology, queue) for queue in topology.queues if queue in used}
    batches = {job.fan_out.batch_size for job in topology.job_types.values() if job.fan_out}
    users = (
        arrivals.users
        if arrivals.kind == "burst"
        else sum(a.users for a in scenario.workload.events(topology, scenario.seed))
    )
    return {
        "topology": topology.name,
        "users": users,
        "workers": len(deployment.processes(topology)),
        "concurrency": next(iter(slots.values())) if len(set(slots.values())) == 1 else slots,
        "batch_size": max(batches) if batches else 1,
        "hosts": deployment.hosts,
        "seed": scenario.seed,
        "replications": replications,
    }


def _shown(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.4g} [{found['lo']:.4g}, {found['hi']:.4g}]"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | range) else [value]
