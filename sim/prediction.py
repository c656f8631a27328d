"""`sim.predict`: what the described system will do, with intervals, for one deployment or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from saqkit.errors import UsageError
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Workload
from sim.analysis.statistics import HALF_WIDTH, MOST
from sim.engine.stock import ignored
from sim.fit.profile import Profile
from sim.running.combination import Combination as Combination
from sim.running.progress_bar import Told, bar
from sim.running.replicating import Keep, Rules, expected_users
from sim.running.scenario import NEXT_SEED as NEXT_SEED
from sim.running.scenario import Concurrency as Concurrency
from sim.running.scenario import Engine, QueueKind, cautions
from sim.running.scenario import Scenario as Scenario
from sim.running.scenario import deploy as deploy
from sim.running.scenario import profile_of as profile_of
from sim.running.sweeping import LARGE, Interrupted, price, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = ("users", "workers", "concurrency", "batch_size")
COLUMNS = {
    "makespan (s)": "makespan_s",
    "throughput (users/s)": "throughput_users_per_s",
    "latency p95 (s)": "latency_p95_s",
}


class Prediction:
    """Simulated runs of one or many combinations of settings.

    Intervals are of 90 %: `lo`, `hi` of one run, `mean_lo`, `mean_hi` of the mean. Utilisation is the share of a
    part's capacity that was used over the makespan: of slots, loops, cores, broker and database writer their time, of
    the rate limit its admissions, and of the provider the share of a slot's time that is spent there.
    `warnings` are the reasons why the profile may not hold here.
    """

    def __init__(self, combinations: Sequence[Combination], warnings: Sequence[str] = ()) -> None:
        self.combinations, self.warnings = tuple(combinations), tuple(warnings)

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """The attempts tables of all combinations, one after another; see `attempts_of`."""
        return pd.concat([self.attempts_of(n) for n in range(len(self.combinations))], ignore_index=True)

    def attempts_of(self, combination: int) -> pd.DataFrame:
        """The attempts table of one combination, all replications."""
        frames = [outcome.attempts(n) for n, outcome in enumerate(self.combinations[combination].outcomes)]
        return pd.concat(frames, ignore_index=True)

    def summary(self, steady: bool = False) -> pd.DataFrame:
        """A row per combination: its settings, and columns (measure, mean | lo | hi | mean_lo | mean_hi).

        `steady`: of streams, the measures of the steady part (see `saqkit.spec.steady`), without warm-up and cool-down.
        """
        rows = [
            {("settings", k): v for k, v in c.settings.items()}
            | {(m, k): v for m, found in ((steady and c.steady) or c.measures).items() for k, v in found.items()}
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

    @property
    def engine(self) -> str:
        """The engine that simulated it: `fast`, `simpy`, or `simpy: ` with why the fast one could not."""
        return self.combinations[0].scenario.engine_used

    def __len__(self) -> int:
        return len(self.combinations)

    def __iter__(self) -> Iterator[Combination]:
        return iter(self.combinations)

    def __repr__(self) -> str:
        lines = []
        for c in self.combinations:
            m = c.measures["makespan_s"]
            shown = ", ".join(f"{k} {c.settings[k]}" for k in SHOWN)
            drained = f"{m['mean']:.2f} s to drain [{m['lo']:.2f}, {m['hi']:.2f}]"
            lines.append(f"{shown}: {drained if c.stable is None else c.verdict}")
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
    workload: Workload | Sequence[Workload] | None = None,
    workers: int | Sequence[int] | None = None,
    concurrency: Concurrency | Sequence[Concurrency] | None = None,
    batch_size: int | Sequence[int] | None = None,
    deployment: Deployment | None = None,
    profile: Profile | str | Path | None = None,
    replications: int | None = None,
    precision: float = HALF_WIDTH,
    max_replications: int = MOST,
    max_seconds: float | None = None,
    seed: int = 0,
    same_draw: bool = False,
    tick_phase_s: float = 0.0,
    queue: QueueKind = "saqkit",
    engine: Engine = "auto",
    keep: Keep = "attempts",
    bottlenecks: bool = False,
    n_jobs: int | None = None,
    confirm: bool | Callable[[str], bool] = False,
    progress: Told | bool = True,
) -> Prediction:
    """Simulate `topology` for every combination of the lists given.

    Either `users` (bursts of that size) or whole `workload`s. `workers` and `concurrency` default to the deployment's
    (1 process, the topology's slots). Without a profile a nominal host is simulated. `replications` are run until the
    relative 90 % half-width of the mean makespan (of a stream: the mean latency) is at most `precision`, at least 5 and
    at most `max_replications`; with `max_seconds` none begins once a combination has taken that long, if it has two
    (`Combination.missed` tells where that left the mean less well known). `same_draw`: no noise but the draws of
    `seed`, those that a real run of the same seed uses.

    `queue="stock"` plays the same system on stock SAQ's queue and worker in place of ours: see `docs/stock_mode.md`.

    `engine`: `fast` and `simpy` return the same attempts, the fast one many times sooner, but it does not cover
    everything and says so. `auto` takes it where it can, and `Prediction.engine` tells. numba, where it is installed,
    compiles the fast engine once that pays, or with `fast` at once (it takes a minute, then it is cached).

    `keep="summary"` forgets each replication's attempts as soon as they are measured, so that memory does not grow with
    users. `n_jobs` combinations are simulated at once by joblib (-1: as many as there are cores; None: as
    `joblib.parallel_config` says, else one), with the same results; `bottlenecks=True` finds their bottlenecks there as
    well. `progress` is told `(done, of)` after each combination; True shows a bar where somebody looks at it.

    More than 10,000 combinations need `confirm=True`, or a function that is told what they will take and agrees. An
    interrupt (Ctrl-C) raises `Interrupted`, a `KeyboardInterrupt` whose `partial` has the combinations done so far.

    Raises `UsageError`, `DescriptionError` or `ProfileError` for what cannot be simulated.
    """
    described = topology if isinstance(topology, Topology) else load(topology)
    known = profile_of(profile)
    if (users is None) == (workload is None):
        raise UsageError("predict needs either users=N or workload=..., and not both")
    _check_numbers(replications, precision, max_replications, keep, n_jobs)
    if max_seconds is not None and not max_seconds > 0:
        raise UsageError(f"max_seconds={max_seconds}: a number above 0, or None for no limit")
    if queue not in get_args(QueueKind):
        raise UsageError(f'queue="{queue}": either "saqkit" or "stock"')
    if engine not in get_args(Engine):
        raise UsageError(f'engine="{engine}": "auto", "simpy" or "fast"')
    workloads = _listed(workload) if workload is not None else [Workload.burst(n) for n in _listed(users)]
    deployments = [deploy(deployment, *pair) for pair in product(_listed(workers), _listed(concurrency))]
    shapes = [described if size is None else described.with_batch_size(size) for size in _listed(batch_size)]
    count = len(workloads) * len(deployments) * len(shapes)
    if not count:
        raise UsageError("predict was given an empty list: there is no combination to simulate")
    for deployed in deployments:
        deployed.check(described)
        for arriving in (one for one in workloads if one.faults):
            arriving.check(described, deployed)

    def scenario(arriving: Workload, deployed: Deployment, shaped: Topology) -> Scenario:
        return Scenario(shaped, deployed, arriving, known, seed, same_draw, tick_phase_s, queue, engine)

    for one in workloads if engine == "fast" else ():
        _ = scenario(one, deployments[0], shapes[0]).engine_used  # refuses what cannot be
    scenarios = (scenario(*cell) for cell in product(workloads, deployments, shapes))
    rules = Rules(replications, precision, max_replications, keep, bottlenecks, max_seconds)
    if count > LARGE and confirm is not True:
        trials = [scenario(one, deployments[0], shapes[0]) for one in workloads]
        sizes = [expected_users(trial) for trial in trials]
        trial = trials[sizes.index(min(sizes))]
        cost = price(trial, sizes, len(deployments) * len(shapes), rules, n_jobs)
        if not (callable(confirm) and confirm(cost)):
            raise UsageError(f"{cost}: confirm=True starts them, n_jobs=-1 shares them out, shorter lists save time")
    warnings, done = cautions(known, described), list[Combination]()
    if queue == "stock":
        warnings += ignored(described)
    shown = bar("predicting") if progress is True and count > 1 else nullcontext(progress or None)
    try:
        with shown as told, closing(sweep(scenarios, rules, n_jobs)) as results:
            for combination in results:
                done.append(combination)
                if callable(told):
                    told(len(done), count)
    except KeyboardInterrupt:
        if not done:
            raise
        raise Interrupted(Prediction(done, warnings), count) from None
    return Prediction(done, warnings)


def _check_numbers(
    replications: int | None, precision: float, max_replications: int, keep: str, n_jobs: int | None
) -> None:
    if replications is not None and replications < 1:
        raise UsageError(f"replications={replications}: at least 1")
    if max_replications < 1:
        raise UsageError(f"max_replications={max_replications}: at least 1")
    if not 0 < precision < 1:
        raise UsageError(f"precision={precision}: a share between 0 and 1, e.g. 0.01")
    if keep not in get_args(Keep):
        raise UsageError(f'keep="{keep}": either "attempts" or "summary"')
    if n_jobs == 0:
        raise UsageError("n_jobs=0: at least 1, or -1 for as many as there are cores")


def _shown(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.4g} [{found['lo']:.4g}, {found['hi']:.4g}]"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | range) else [value]
