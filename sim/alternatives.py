"""`sim.what_if`: scenarios side by side, on the same draws as the base."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from saqkit.errors import DescriptionError, UsageError
from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.analysis.statistics import LEVEL
from sim.changes import BUILT_IN, Change, Unchanged, applied
from sim.fit.profile import Profile
from sim.prediction import predict
from sim.running.combination import Combination
from sim.running.scenario import Concurrency, QueueKind, Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = ("makespan_s", "latency_p95_s", "users_failed")


@dataclass(frozen=True, eq=False)
class WhatIf:
    """A base and what each change makes of it.

    `left_out` says which of the built-in changes would change nothing here, and why.
    """

    base: Combination
    scenarios: Mapping[str, Combination]
    left_out: Mapping[str, str]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for name, cell in self.scenarios.items():
            runs = _runs(self.base, cell)
            for measure in trace.MEASURES:
                before, after = (np.array([one[measure] for one in each], float) for each in runs)
                rows.append(
                    {
                        "scenario": name,
                        "measure": measure,
                        "base": _mean(before),
                        "value": _mean(after),
                        **_paired(before, after),
                        "bottleneck": cell.bottlenecks[0],
                    }
                )
        return rows

    def summary(self) -> pd.DataFrame:
        """A row per scenario and measure: base and value (means over replications), difference, lo, hi, relative.

        `lo`, `hi` are the 90 % confidence interval of the mean *paired* difference: each replication of a scenario has
        the draws of the base's, so that what is common to both cancels out. `relative` is the difference over the base,
        `bottleneck` that of the scenario. Of steady streams latencies and waits are those of the steady part; a stream
        that outruns the system, and so was not played to its end, has NaN.
        """
        return pd.DataFrame(self._rows).set_index(["scenario", "measure"])

    def to_dict(self) -> dict[str, Any]:
        """Base and scenarios as plain JSON types: measures with their differences, bottlenecks, what was left out."""
        scenarios: dict[str, dict[str, Any]] = {name: {} for name in self.scenarios}
        for row in self._rows:
            scenarios[row["scenario"]][row["measure"]] = {
                key: _plain(row[key]) for key in ("value", "difference", "lo", "hi", "relative")
            }
        for name, cell in self.scenarios.items():
            scenarios[name] |= {"bottleneck": cell.bottlenecks[0]} | ({"verdict": cell.verdict} if cell.stream else {})
        base = {measure: _plain(found["mean"]) for measure, found in self.base.measures.items()}
        return {
            "base": {**self.base.settings, **base, "bottleneck": self.base.bottlenecks[0]},
            "scenarios": scenarios,
            "left_out": dict(self.left_out),
        }

    def plot(self, measure: str = "", ax: Axes | None = None) -> Axes:
        """The tornado: what each change does to `measure` (default: time to drain; p95 of latency for streams)."""
        from sim.pictures import tornado

        burst = self.base.scenario.workload.arrivals.kind == "burst"
        chosen = measure or ("makespan_s" if burst else "latency_p95_s")
        if chosen not in trace.MEASURES:
            raise UsageError(f'there is no measure "{chosen}" (one of {", ".join(trace.MEASURES)})')
        rows = [row for row in self._rows if row["measure"] == chosen]
        return tornado(pd.DataFrame(rows), ax)

    def __repr__(self) -> str:
        settings = self.base.settings
        lines = [
            f"WhatIf({settings['topology']}: {settings['users']:,} users, {settings['workers']} workers, "
            f"concurrency {settings['concurrency']})",
            "  base: " + ", ".join(f"{m} {self.base.measures[m]['mean']:.4g}" for m in SHOWN)
            + f", bottleneck {self.base.bottlenecks[0]}",
        ]  # fmt: skip
        for name, cell in self.scenarios.items():
            rows = [row for row in self._rows if row["scenario"] == name and row["measure"] in SHOWN]
            shown = [f"{r['measure']} {r['difference']:+.4g} [{r['lo']:+.4g}, {r['hi']:+.4g}]" for r in rows]
            lines.append(f"  {name}: {', '.join(shown)}, bottleneck {cell.bottlenecks[0]}{_growing(cell)}")
        lines += [f"  left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = []
        for name, cell in self.scenarios.items():
            of = {row["measure"]: row for row in self._rows if row["scenario"] == name}
            cells = {m: f"{of[m]['difference']:+.4g} [{of[m]['lo']:+.4g}, {of[m]['hi']:+.4g}]" for m in SHOWN}
            rows.append({"scenario": name, **cells, "bottleneck": cell.bottlenecks[0] + _growing(cell)})
        first = {"scenario": "base", **{m: f"{self.base.measures[m]['mean']:.4g}" for m in SHOWN}}
        table = pd.DataFrame([{**first, "bottleneck": self.base.bottlenecks[0]}, *rows])
        notes = "".join(f"<li>left out: {html.escape(f'{n}: {why}')}</li>" for n, why in self.left_out.items())
        return table.to_html(index=False) + (f"<ul>{notes}</ul>" if notes else "")


def what_if(
    topology: Topology | str | Path,
    changes: Mapping[str, Change | str] | Sequence[str] | None = None,
    *,
    users: int | None = None,
    workload: Workload | None = None,
    workers: int | None = None,
    concurrency: Concurrency | None = None,
    batch_size: int | None = None,
    deployment: Deployment | None = None,
    profile: Profile | str | Path | None = None,
    queue: QueueKind = "saqkit",
    replications: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> WhatIf:
    """Simulate a base, and the base with each of some changes, on common random numbers.

    `changes` names scenarios: for each a dict of override paths and values (as `--set`:
    `providers.email.latency.mean_s`, `deployment.workers`, `workload.arrivals.users`; short: `users workers concurrency
    batch_size`, and `{"queue": "stock"}` for stock SAQ's queue), a Topology, Deployment or Workload instead of the
    base's, a function from Scenario to Scenario, or the name of a built-in change. A list of names of built-in changes
    will do too. None: all of `sim.changes.BUILT_IN` that change something: half the latency, double the users, ten
    minutes of outage and two workers killed (when a third of the base's time is over), two workers fewer, retries
    tripled.
    `queue`: whose queue the base runs on.

    Raises `DescriptionError` for a path that does not exist and for a scenario that changes nothing.
    """
    if replications < 2:
        raise UsageError(f"replications={replications}: a difference has an interval from 2 on")
    first = predict(
        topology, users=users, workload=workload, workers=workers, concurrency=concurrency, batch_size=batch_size,
        deployment=deployment, profile=profile, replications=replications, seed=seed,
        queue=queue,
    ).combinations[0]  # fmt: skip
    scenarios, left_out = _changed(first, changes)
    if progress:
        progress(1, len(scenarios) + 1)
    found: dict[str, Combination] = {}
    for name, scenario in scenarios.items():
        found[name] = predict(
            scenario.topology,
            workload=scenario.workload,
            deployment=scenario.deployment,
            profile=scenario.profile,
            replications=replications,
            seed=scenario.seed,
            queue=scenario.queue,
        ).combinations[0]
        if progress:
            progress(len(found) + 1, len(scenarios) + 1)
    return WhatIf(first, found, left_out)


def _changed(
    base: Combination, changes: Mapping[str, Change | str] | Sequence[str] | None
) -> tuple[dict[str, Scenario], dict[str, str]]:
    if changes is not None and not changes:
        raise UsageError("changes: none is given (leave it out for the built-in ones)")
    if isinstance(changes, str):
        raise UsageError(f'changes="{changes}": a list of names, or a dict of name and change')
    named = changes if isinstance(changes, Mapping) else {name: name for name in changes or BUILT_IN}
    scenarios: dict[str, Scenario] = {}
    left_out: dict[str, str] = {}
    for name, change in named.items():
        try:
            scenarios[name] = applied(name, change, base.scenario, base.measures["makespan_s"]["mean"])
        except Unchanged as nothing:
            if changes is not None:
                raise DescriptionError(f'scenario "{name}" changes nothing: {nothing}', key="changes",
                                       value=name) from nothing  # fmt: skip
            left_out[name] = str(nothing)
    return scenarios, left_out


Replications = Sequence[Mapping[str, float]]


def _runs(base: Combination, cell: Combination) -> tuple[Replications, Replications]:
    """The measures of each replication of both: of the steady part where both have one."""
    if base.stream and cell.stream and not (base.stream.played and cell.stream.played):
        return base.replications if base.stream.played else (), cell.replications if cell.stream.played else ()
    if base.stream and cell.stream and base.steady and cell.steady:
        return base.stream.replications, cell.stream.replications
    return base.replications, cell.replications


def _growing(cell: Combination) -> str:
    return f" ({cell.verdict})" if cell.stable is False else ""


def _paired(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Mean of the differences with mean ± t·s/√n, pairs with a NaN left out."""
    both = after - before if len(after) == len(before) else np.array([])
    both = both[~np.isnan(both)]
    if len(both) < 2:
        return dict.fromkeys(("difference", "lo", "hi", "relative"), float("nan"))
    mean, spread = float(both.mean()), float(both.std(ddof=1)) if np.ptp(both) > 0 else 0.0
    reach = float(stdtrit(len(both) - 1, (1 + LEVEL) / 2)) * spread / sqrt(len(both))
    base = _mean(before)
    relative = mean / base if base else float("nan")
    return {"difference": mean, "lo": mean - reach, "hi": mean + reach, "relative": relative}


def _mean(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
