"""`sim.judge`: predictions beside a recorded grid of measured runs that calibration never saw, class by class."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt, model_validator

from saqkit.errors import RunError
from saqkit.spec import steady
from saqkit.spec.base import Part
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.runs import Run
from saqkit.spec.steady import Window
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import KillWorker, ProviderOutage, Workload
from sim.analysis.statistics import LEAST, intervals
from sim.baselines import baselines
from sim.engine.outcome import Outcome
from sim.fit.observations import tick_phase_s
from sim.fit.profile import Profile
from sim.prediction import Combination, Scenario, predict, profile_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["io", "loop", "core", "limiter", "retries", "priorities", "stream", "fault"]
KINDS: tuple[Kind, ...] = ("io", "loop", "core", "limiter", "retries", "priorities", "stream", "fault")
DRAIN = ("makespan_s", "throughput_users_per_s")
LATENCY = ("latency_p50_s", "latency_p95_s", "latency_p99_s")
MEASURES: Mapping[Kind, tuple[str, ...]] = {
    "io": DRAIN + LATENCY,
    "loop": DRAIN + LATENCY,
    "core": DRAIN + LATENCY,
    "limiter": DRAIN + LATENCY,
    "retries": ("makespan_s", "latency_p95_s"),
    "priorities": DRAIN + LATENCY,
    "stream": ("latency_mean_s", "latency_p95_s", "latency_p99_s"),
    "fault": ("recovery_s", "makespan_s"),
}
"""What is judged in each class: of a stream not the makespan, which its arrivals decide."""
PACED: tuple[Kind, ...] = ("io", "loop", "core")
"""Plain bursts, of which it is told what the yardstick beside the runs explains."""
ERRORS = ("error", "yardstick_error", "same_draw_error", "naive_error", "mmc_error")


class Cell(Part):
    """One configuration of a grid: what is run (`topology`, `set`, `batch_size`), where, and how often.

    `topology` is a shipped name, or the path of a TOML file from the folder that the grid's own folder is in.
    """

    name: str
    kind: Kind
    topology: str
    set: dict[str, Any] = Field(default={})
    batch_size: PositiveInt | None = None
    deployment: Deployment = Deployment()
    workload: Workload
    seed: int = 0
    repeats: PositiveInt = 3

    def described(self, data: Path) -> Topology:
        """The topology with everything that this cell changes."""
        given = data / self.topology if self.topology.endswith(".toml") else self.topology
        topology = override(load(given), self.set)
        return topology if self.batch_size is None else topology.with_batch_size(self.batch_size)


class Grid(Part):
    """The configurations of a grid; each name once."""

    cells: tuple[Cell, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_once(self) -> Grid:
        names = [cell.name for cell in self.cells]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'two cells are called "{twice[0]}"')
        return self

    @classmethod
    def read(cls, folder: Path) -> Grid:
        """The `cells.json` of a grid's folder; `RunError` or `DescriptionError` if there is none or it is wrong."""
        path = folder / "cells.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read as the cells of a grid: {error}") from error
        return cls.parse(data, str(path))


def runs_of(folder: Path, cell: Cell) -> list[Run]:
    """The recorded runs of a cell, in the order of their repeats."""
    return [Run.load(path) for path in sorted((folder / "runs").glob(f"{cell.name}.*.parquet"))]


def calm(runs: Sequence[Run]) -> list[Run]:
    """The runs that count: the undisturbed ones, or all if every one was disturbed."""
    return [run for run in runs if not run.disturbed] or list(runs)


def recovery_s(attempts: pd.DataFrame, workload: Workload) -> float:
    """How long the workload's first fault was felt, in seconds; NaN if it hit nobody.

    From a kill to the last finish of the jobs that were lost in it, and from the end of an outage to the last finish of
    the jobs that failed in it.
    """
    fault = next((one for one in workload.faults if isinstance(one, KillWorker | ProviderOutage)), None)
    if isinstance(fault, KillWorker):
        since, struck = fault.at_s, attempts["outcome"] == "lost"
    elif isinstance(fault, ProviderOutage):
        since = fault.at_s + fault.duration_s
        struck = (attempts["outcome"] == "retry") & attempts["finished_at"].between(fault.at_s, since)
    else:
        return float("nan")
    jobs = set(attempts.loc[struck, "job"])
    ended = attempts.loc[attempts["job"].isin(jobs), "finished_at"]
    return max(0.0, float(ended.max()) - since) if len(ended) else float("nan")


def judged(attempts: pd.DataFrame, workload: Workload, counted: Window | None = None) -> dict[str, float]:
    """All measures that a grid judges, of one run, real or simulated: of a stream in its steady part, `counted`."""
    return steady.measures(attempts, counted) | {"recovery_s": recovery_s(attempts, workload)}


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How far predictions were off: `table` has a row per cell and measure.

    Of a steady stream all columns are of its steady part, `from_s` to `to_s` (NaN: of the whole run): the window that
    the prediction's replications show (`saqkit.spec.steady`), the same for measured, predicted and same-draw values.
    `measured` is the median of the `runs` undisturbed repeats (of all if none is `calm`; `disturbed` were marked as
    such), `spread` their (max - min) / median, `predicted` the mean of replications that know nothing of the runs, with
    `lo`, `hi` (90 % of single runs) and `inside`, the share of runs there; `error` = predicted / measured - 1.
    `yardstick_error`: the same on a host of the speed that the probe beside the runs saw, for the classes of `PACED`.
    `same_draw_error`: the median error of simulations that were given each run's own draws and the speed that it shows
    itself (`Profile.own_speed_of`), so that what is left is mechanism; `same_draw_spread` is the range of these errors.
    `busy` and `load` are the model's busiest of loops and cores, and of slots, loops and cores, with the runs' own
    draws (median); `tick_s` is the grid that the cell's retries wake on. `naive_error`, `mmc_error`: those of estimates
    that need no model (`sim.baselines`), NaN where they give none. `beyond`: how far `predicted` is outside of the
    range of the repeats, as a share of `measured`; by this, cells that spread widely are judged.
    """

    table: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Mean and worst absolute error by class and column; counts of cells, values, and the share inside."""
        return self._by(["kind"])

    def by_measure(self) -> pd.DataFrame:
        """The same by class and measure."""
        return self._by(["kind", "measure"])

    def graded(self) -> pd.DataFrame:
        """What is demanded of predictions, beside what was found: see `sim.grading.grade`."""
        from sim.grading import grade

        return grade(self.table)

    def wide(self) -> pd.DataFrame:
        """The values that repeats do not show to a tenth, judged by their spread: see `sim.grading.wide`."""
        from sim.grading import wide

        return wide(self.table)

    def _by(self, names: list[str]) -> pd.DataFrame:
        rows = []
        for key, part in self.table.groupby(names, sort=False, observed=True):
            row: dict[str, Any] = dict(zip(names, key if isinstance(key, tuple) else (key,), strict=True))
            row |= {"cells": part["cell"].nunique(), "inside": part["inside"].mean(), "spread": part["spread"].median()}
            for column in ERRORS:
                size = part[column].abs()
                row |= {f"{column} mean": size.mean(), f"{column} worst": size.max()}
            rows.append(row)
        return pd.DataFrame(rows).set_index(names)

    def plot(self, column: str = "error", ax: Axes | None = None) -> Axes:
        """Every error as a point, class by class; returns the Axes."""
        from saqkit.spec.pictures import BLUE, GREY, ORANGE, new_axes

        ax = new_axes() if ax is None else ax
        kinds = [kind for kind in KINDS if kind in set(self.table["kind"])]
        for place, kind in enumerate(kinds):
            errors = 100 * self.table.loc[self.table["kind"] == kind, column].to_numpy(float)
            sideways = place + np.linspace(-0.25, 0.25, len(errors)) if len(errors) > 1 else np.array([float(place)])
            ax.plot(sideways, errors, "o", color=BLUE, markersize=4, alpha=0.6)
            ax.plot([place - 0.3, place + 0.3], [np.mean(errors)] * 2, color=ORANGE, linewidth=2)
        ax.axhline(0, color=GREY, linewidth=1)
        ax.set(ylabel="(predicted - measured) / measured, %", xlabel="class of configurations")
        ax.set_xticks(range(len(kinds)), kinds)
        return ax

    def __repr__(self) -> str:
        cells, values = self.table["cell"].nunique(), len(self.table)
        return f"Accuracy({cells} configurations, {values} values, mean error {self.table['error'].abs().mean():.1%})"

    def _repr_html_(self) -> str:
        return f"<p><code>{self!r}</code></p>" + self.summary().to_html(float_format="{:.3f}".format)


def judge(
    folder: str | Path,
    profile: Profile | str | Path | None = None,
    *,
    replications: int | None = None,
    kinds: Sequence[Kind] = KINDS,
    written: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Judge `profile` (default: the grid's own `profile.json`) on the recorded runs of a grid.

    A grid is a folder with `cells.json`, `runs/CELL.N.parquet` and `profile.json`. `written`: a table of predictions
    with the columns `cell measure mean lo hi`, as it was written before anything was measured; `predicted`, `lo` and
    `hi` are then its own, and only what needs the runs is simulated now. Cells without a recorded run are left out.
    Raises `RunError` for a folder that is no grid, and for written predictions that leave out what was measured.
    """
    place = Path(folder)
    known = profile_of(place / "profile.json" if profile is None else profile)
    cells = [cell for cell in Grid.read(place).cells if cell.kind in kinds]
    foreseen = _written(Path(written)) if written is not None else {}
    rows: list[dict[str, Any]] = []
    for n, cell in enumerate(cells):
        if runs := runs_of(place, cell):
            if written is not None and (left_out := set(MEASURES[cell.kind]) - set(foreseen.get(cell.name, {}))):
                raise RunError(f"{written}: no prediction of {min(left_out)} for cell {cell.name}, which was measured")
            rows += _rows(cell, runs, known, replications, place, foreseen.get(cell.name))
        if progress:
            progress(n + 1, len(cells))
    if not rows:
        raise RunError(f"{place}: no recorded run of any cell (runs/CELL.N.parquet)")
    return Accuracy(pd.DataFrame(rows))


def _written(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Predictions from a table: for each cell and measure `mean`, `lo`, `hi`."""
    try:
        table = pd.read_csv(path)
        columns = {name: table[name] for name in ("cell", "measure", "mean", "lo", "hi")}
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: no table of predictions with cell, measure, mean, lo, hi: {error}") from error
    found: dict[str, dict[str, dict[str, float]]] = {}
    for cell, measure, mean, lo, hi in zip(*columns.values(), strict=True):
        found.setdefault(str(cell), {})[str(measure)] = {"mean": float(mean), "lo": float(lo), "hi": float(hi)}
    return found


def _rows(
    cell: Cell,
    runs: Sequence[Run],
    profile: Profile,
    replications: int | None,
    folder: Path,
    written: dict[str, dict[str, float]] | None,
) -> Iterator[dict[str, Any]]:
    used = calm(runs)
    counted: Window | None = None
    plain = written or {}
    if written is None or steady.is_steady(cell.workload):
        # The part of a stream that counts is settled by the first replications, however many follow.
        combination = _predicted(cell, profile, LEAST if written else replications, folder.parent)
        counted = combination.window
        plain = written or _intervals(combination, counted)
    found = [judged(run.attempts, run.workload, counted) for run in used]
    speed = float(np.median([profile.speed_of(run) for run in used]))
    paced: dict[str, dict[str, float]] = {}
    if cell.kind in PACED:
        paced = _intervals(_predicted(cell, profile.at(speed), replications, folder.parent, steady_host=True), counted)
    outcomes = [same_draw(run, profile) for run in used]
    own = [judged(outcome.attempts(), run.workload, counted) for outcome, run in zip(outcomes, used, strict=True)]
    busy = [max(outcome.utilisation[part] for part in ("loop", "cores")) for outcome in outcomes]
    load = [max(one, outcome.utilisation["slots"]) for one, outcome in zip(busy, outcomes, strict=True)]
    tick_s = max(queue.tick_s for queue in cell.described(folder.parent).queues.values())
    reckoned = baselines(cell.described(folder.parent), cell.deployment, cell.workload)
    for measure in MEASURES[cell.kind]:
        values = np.array([one[measure] for one in found])
        middle, foreseen = float(np.median(values)), plain[measure]
        errors = [mine[measure] / one[measure] - 1 for mine, one in zip(own, found, strict=True)]
        naive, mmc = reckoned.get(measure, (np.nan, np.nan))
        yield {
            "kind": cell.kind,
            "cell": cell.name,
            "measure": measure,
            "measured": middle,
            "spread": float(np.ptp(values)) / middle,
            "runs": len(used),
            "calm": not all(run.disturbed for run in runs),
            "disturbed": sum(bool(run.disturbed) for run in runs),
            "from_s": counted.from_s if counted else np.nan,
            "to_s": counted.to_s if counted else np.nan,
            "speed": speed,
            "busy": float(np.median(busy)),
            "load": float(np.median(load)),
            "tick_s": tick_s,
            "predicted": foreseen["mean"],
            "lo": foreseen["lo"],
            "hi": foreseen["hi"],
            "inside": float(np.mean((values >= foreseen["lo"]) & (values <= foreseen["hi"]))),
            "error": foreseen["mean"] / middle - 1,
            "yardstick_error": paced[measure]["mean"] / middle - 1 if paced else np.nan,
            "same_draw_error": float(np.median(errors)),
            "same_draw_spread": float(np.ptp(errors)),
            "naive_error": naive / middle - 1,
            "mmc_error": mmc / middle - 1,
            "beyond": max(0.0, float(values.min()) - foreseen["mean"], foreseen["mean"] - float(values.max())) / middle,
        }


def expected(cell: Cell, profile: Profile, replications: int | None, data: Path) -> dict[str, dict[str, float]]:
    """What is predicted for a cell, by measure: `mean`, `lo`, `hi`, …; it knows nothing of any run.

    Latency, wait and throughput of a stream are those of its steady part.
    """
    combination = _predicted(cell, profile, replications, data)
    return _intervals(combination, combination.window)


def _predicted(
    cell: Cell, profile: Profile, replications: int | None, data: Path, steady_host: bool = False
) -> Combination:
    """`steady_host`: draws differ between replications, but not the host, whose speed is known."""
    return predict(
        cell.described(data),
        workload=cell.workload,
        deployment=cell.deployment,
        profile=profile,
        replications=replications,
        seed=cell.seed + 1_000_003,
        same_draw=steady_host,
    ).combinations[0]


def _intervals(combination: Combination, counted: Window | None) -> dict[str, dict[str, float]]:
    """What was predicted, by measure, in the part of a stream that counts."""
    if combination.stream and not combination.stream.played:
        return combination.measures | {"recovery_s": intervals([])}
    workload, residual = combination.scenario.workload, combination.scenario.profile.residual
    found = [judged(outcome.attempts(), workload, counted) for outcome in combination.outcomes]
    return {
        name: intervals([one[name] for one in found], residual if name.endswith("_s") else 0.0) for name in found[0]
    }


def same_draw(run: Run, profile: Profile) -> Outcome:
    """A run simulated with its own draws, at the speed that it shows itself: what differs is mechanism and host."""
    paced = profile.at(profile.own_speed_of(run))
    return Scenario(run.topology, run.deployment, run.workload, paced, run.seed, True, tick_phase_s(run)).run()
