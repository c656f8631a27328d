"""How close are predictions to runs that calibration never saw?

    python benchmarks/accuracy.py design    GRID    choose the configurations, space-filling, class by class
    python benchmarks/accuracy.py calibrate GRID    measure the small runs of calibration, fit the profile
    python benchmarks/accuracy.py predict   GRID    write the predictions down, before anything is measured
    python benchmarks/accuracy.py measure   GRID    measure what is not measured yet (goes on where it was stopped)
    python benchmarks/accuracy.py report    GRID    print what is demanded and found, by class
    python benchmarks/accuracy.py check             eight held-out configurations, here and now, under 15 minutes

GRID is a folder; `data/grid` has the configurations that are to be recorded.

Every run has its own probe beside it (1 s of the host's speed, alone and with all cores busy). Leave the machine alone
while it measures: the kit marks runs that others disturbed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc

import saqkit
import sim
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.runs import Run
from saqkit.spec.workload import Workload
from sim.fit.profile import Profile
from sim.grading import readable
from sim.judging import KINDS, MEASURES, Cell, Grid, Kind, expected, runs_of
from sim.prediction import Scenario

DATA = Path(__file__).parent.parent / "data"
LIMIT = "queues.notifications.rate_limit"
LATENCY = "providers.email.latency"
CPU = "job_types.notify.per_user.cpu_us"
FAILING = "providers.email.temporary_share"
COUNTS: dict[Kind, int] = {"io": 10, "loop": 7, "core": 7, "limiter": 6, "retries": 8, "priorities": 6, "fault": 8}
LOADS = (0.5, 0.8, 0.9)
STREAM_S = 60.0
SHORTEST_S, LONGEST_S = 1.5, 45.0
CALIBRATION: tuple[dict[str, Any], ...] = (
    {"users": 300, "workers": 1, "concurrency": 5, "batch_size": 25},
    {"users": 2_000, "workers": 1, "concurrency": 50, "batch_size": 20, "set": {CPU: 200}},
    {"users": 1_000, "workers": 2, "concurrency": 10, "batch_size": 100, "set": {f"{LATENCY}.mean_s": 0.005}},
    {"users": 400, "workers": 1, "concurrency": 20, "set": {"entry": [{"job_type": "notify"}]}},
    {"stream": 40.0, "workers": 1, "concurrency": 5, "set": {"entry": [{"job_type": "notify"}]}},
)
"""At most five runs of at most 2,000 users: alone and crowded, batches and single users, a burst and a slow stream."""


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description="Predictions against runs that calibration never saw.")
    parser.add_argument("what", choices=["design", "calibrate", "predict", "measure", "report", "check"])
    parser.add_argument("grid", type=Path, nargs="?", default=DATA / "grid")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these classes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="measure: stop after so long")
    given = parser.parse_args()
    if given.what == "check":
        check()
        return
    given.grid.mkdir(parents=True, exist_ok=True)
    match given.what:
        case "design":
            design(given.grid)
        case "calibrate":
            asyncio.run(calibrate(given.grid))
        case "predict":
            predict(given.grid)
        case "measure":
            asyncio.run(measure(given.grid, given.kinds, given.minutes))
        case "report":
            report(given.grid, given.kinds)


def design(grid: Path) -> None:
    """Choose cells with a Sobol sequence over the ranges; the classes by what the model says is busy."""
    profile = Profile.load(grid / "profile.json") if (grid / "profile.json").exists() else Profile.load(
        DATA / "profile-quickstart.json"
    )  # fmt: skip
    cells = [cell for kind, count in COUNTS.items() for cell in _chosen(kind, count, profile)]
    cells += _streams(profile)
    Grid(cells=tuple(cells))
    text = json.dumps({"cells": [cell.to_dict() for cell in cells]}, indent=1)
    (grid / "cells.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(cells)} cells, {sum(cell.repeats for cell in cells)} runs")


def _chosen(kind: Kind, count: int, profile: Profile) -> Iterator[Cell]:
    """The first `count` points of the class's sequence that last neither too short nor too long, and are of it."""
    found = 0
    for n, point in enumerate(qmc.Sobol(7, seed=KINDS.index(kind)).random(256)):
        cell = _candidate(kind, f"{kind}-{found + 1}", n, point, found)
        topology = cell.described(DATA)
        outcome = Scenario(topology, cell.deployment, cell.workload, profile, 1, True).run()
        busy, lasts = outcome.utilisation, outcome.ended_at_s
        belongs = {
            "io": busy["loop"] < 0.65 and busy["cores"] < 0.65,
            "loop": busy["loop"] > 0.85,
            "core": busy["cores"] > 0.9,
            "limiter": busy["rate_limit"] > 0.9,
            "retries": busy["loop"] < 0.65 and busy["cores"] < 0.65,
            "priorities": True,
            "fault": busy["cores"] < 0.65 and lasts > 12,
        }
        if SHORTEST_S < lasts < LONGEST_S and belongs[str(kind)]:
            found += 1
            print(cell.name, cell.set, cell.deployment.workers, cell.deployment.concurrency, cell.batch_size,
                  cell.workload.arrivals, f"{lasts:.1f} s", flush=True)  # fmt: skip
            yield cell
            if found == count:
                return
    raise SystemExit(f"{kind}: only {found} of {count} cells were found")


def _candidate(kind: Kind, name: str, n: int, point: Any, found: int) -> Cell:
    def between(place: int, low: float, high: float) -> float:
        """Evenly in the logarithm."""
        return float(low * (high / low) ** point[place])

    users = round(between(0, 100, 100_000), -2) or 100
    workers, concurrency = int(1 + 4 * point[1]), round(between(2, 1, 100))
    batch, latency_s = round(between(3, 20, 500)), round(between(4, 0.002, 0.075), 4)
    tail = 0.5 if point[5] < 0.5 else 2.0
    cpu_us = 0
    settings: dict[str, Any] = {f"{LATENCY}.mean_s": latency_s, f"{LATENCY}.cv": tail}
    topology, faults, repeats = "lab.toml", [], 3
    if n % 3 == 2 and kind in ("io", "retries", "fault"):  # a third on school-events, with its own provider
        topology, settings = "school-events", {LIMIT: "none"}
    match kind:
        case "loop":
            workers, cpu_us, concurrency = 1, round(between(6, 50, 1000)), max(concurrency, 10)
        case "core":
            workers, cpu_us, concurrency = 3 + int(2 * point[1]), round(between(6, 20, 500)), max(concurrency, 10)
        case "limiter":
            topology = "school-events"
            by_users = found % 2 == 1
            limit = round(between(6, 200, 2000)) if by_users else round(between(6, 3, 20))
            settings = {f"{LIMIT}.limit": limit, f"{LIMIT}.unit": "users" if by_users else "jobs"}
            batch = min(batch, 100)
            rate = limit if by_users else limit * batch
            users = max(100, round(rate * between(0, 4, 30), -2))
            workers = max(2, workers)
            concurrency = min(100, max(5, round(2 * rate * 0.08 / workers)))  # what the limit lets through, twice
        case "retries":
            settings[FAILING] = 0.02 if found % 2 else 0.10
        case "fault":
            workers = max(2, workers)
    if cpu_us:
        settings[CPU] = cpu_us
    arrivals: dict[str, Any] = {"kind": "burst", "users": int(users)}
    if kind == "priorities":
        levels = {"critical": 0.1, "high": 0.2, "normal": 0.4, "low": 0.3}
        settings["entry"] = [{"job_type": "announce", "share": s, "priority": p} for p, s in levels.items()]
        events = 5 + int(20 * point[6])
        arrivals = {"kind": "recorded", "at_s": [round(0.05 * k, 2) for k in range(events)],
                    "users": [max(20, int(users) // events)] * events}  # fmt: skip
    if kind == "fault":
        if found % 2:
            faults = [{"kind": "kill_worker", "at_s": 2.0 + 4 * point[6], "worker": 0}]
        else:
            faults = [{"kind": "provider_outage", "at_s": 2.0, "duration_s": 2.0 + 4 * point[6], "provider": "email"}]
    return Cell(
        name=name,
        kind=kind,
        topology=topology,
        set=settings,
        batch_size=batch,
        deployment=Deployment(workers=workers, concurrency=concurrency),
        workload=Workload.parse({"arrivals": arrivals, "faults": faults}),
        seed=1000 * (1 + KINDS.index(kind)) + 10 * found,
        repeats=repeats,
    )


def _streams(profile: Profile) -> Iterator[Cell]:
    """Poisson streams at shares of the rate that the model says is the highest: slots, then the loop are the limit."""
    single = {"entry": [{"job_type": "notify"}]}
    shapes: list[tuple[dict[str, Any], int, int, int]] = [
        ({**single, f"{LATENCY}.mean_s": 0.075}, 1, 5, 1),
        ({f"{LATENCY}.mean_s": 0.02, CPU: 100}, 2, 5, 20),
        ({**single, f"{LATENCY}.mean_s": 0.02, CPU: 8000}, 1, 20, 1),
    ]
    for shape, (settings, workers, concurrency, users) in enumerate(shapes, start=1):
        topology = override(saqkit.load(DATA / "lab.toml"), settings)
        topology = topology.with_batch_size(20) if users > 1 else topology
        deployment = Deployment(workers=workers, concurrency=concurrency)
        many = Workload.parse({"arrivals": {"kind": "recorded", "at_s": [0.0] * 1000, "users": [users] * 1000}})
        outcome = Scenario(topology, deployment, many, profile, 1, True).run()
        for load in LOADS:
            rate = round(load * 1000 / outcome.ended_at_s, 2)
            arrivals = {"kind": "poisson", "rate_per_s": rate, "duration_s": STREAM_S, "users_per_event": users}
            yield Cell(
                name=f"stream-{shape}-{load:.0%}".replace("%", ""),
                kind="stream",
                topology="lab.toml",
                set=settings,
                batch_size=20 if users > 1 else None,
                deployment=deployment,
                workload=Workload.parse({"arrivals": arrivals}),
                seed=9000 + 100 * shape + round(100 * load),
                repeats=5 if load > 0.8 else 3,
            )


async def calibrate(grid: Path) -> None:
    """Measure the small runs, and fit the profile to them."""
    folder = grid / "calibration"
    folder.mkdir(exist_ok=True)
    for n, given in enumerate(CALIBRATION):
        small = dict(given)
        topology = override(saqkit.load(DATA / "lab.toml"), small.pop("set", {}))
        if rate := small.pop("stream", 0.0):
            arrivals = {"kind": "poisson", "rate_per_s": rate, "duration_s": 10.0}
            small["workload"] = Workload.parse({"arrivals": arrivals})
        run = await _calm(topology, attempts=5, seed=n + 1, **small)
        run.save(folder / f"small-{n + 1}.parquet")
        print(f"{given}: {run!r}", flush=True)
    profile = sim.calibrate(sorted(folder.glob("*.parquet")))
    profile.save(grid / "profile.json")
    print(profile, *profile.diagnostics, sep="\n")


def predict(grid: Path) -> None:
    """Write predictions.csv: what is expected of every cell, by a profile that saw none of its runs."""
    profile, cells = Profile.load(grid / "profile.json"), Grid.read(grid).cells
    if already := [cell.name for cell in cells if runs_of(grid, cell)]:
        raise SystemExit(f"{len(already)} cells are measured already, {already[0]} for one: predictions come first")
    rows = [
        {"cell": cell.name, "kind": cell.kind, "measure": measure, **found[measure]}
        for cell in cells
        for found in [expected(cell, profile, None, grid.parent)]
        for measure in MEASURES[cell.kind]
    ]
    frame = pd.DataFrame(rows).round(6)
    frame.to_csv(grid / "predictions.csv", index=False)
    drains = frame[frame["measure"] == "makespan_s"].set_index("cell")["mean"]
    total_s = sum(cell.repeats * (6 + drains.get(cell.name, STREAM_S + 1)) for cell in cells)
    print(f"{len(cells)} cells predicted; measuring them takes about {total_s / 60:.0f} minutes")


async def measure(grid: Path, kinds: list[Kind], minutes: float) -> None:
    """Every cell once, then every cell again: the host's speed drifts, and no cell shall have one mood of it alone."""
    (grid / "runs").mkdir(exist_ok=True)
    until = time.monotonic() + 60 * minutes
    cells = [cell for cell in Grid.read(grid).cells if cell.kind in kinds]
    todo = [
        (cell, k, path)
        for k in range(max(cell.repeats for cell in cells))
        for cell in np.random.default_rng(k).permutation(np.array(cells, dtype=object))
        if k < cell.repeats and not (path := grid / "runs" / f"{cell.name}.{k + 1}.parquet").exists()
    ]
    for n, (cell, k, path) in enumerate(todo):
        if time.monotonic() > until:
            print(f"stopped: {len(todo) - n} runs are left")
            return
        began = time.monotonic()
        how = {"workload": cell.workload, "deployment": cell.deployment, "seed": cell.seed + k}
        run = await _calm(cell.described(grid.parent), attempts=2, **how)
        replace(run, steps=run.steps.iloc[:0], attempts=_rounded(run.attempts)).save(path)
        print(f"[{n + 1}/{len(todo)}, {time.monotonic() - began:.0f} s] {path.stem}: {run!r}", flush=True)


async def _calm(topology: saqkit.Topology, attempts: int, **how: Any) -> Run:
    """A run that was not disturbed, or the last of `attempts`, which says that it was."""
    for _ in range(attempts):
        run = await saqkit.measure(topology, **how)
        if not run.disturbed:
            break
    return run


def _rounded(attempts: pd.DataFrame) -> pd.DataFrame:
    """Times to the microsecond: nobody measures closer, and the files are half as large."""
    times = attempts.select_dtypes("float64").columns
    return attempts.assign(**{name: attempts[name].round(6) for name in times})


def report(grid: Path, kinds: list[Kind]) -> None:
    """Print what is demanded and what was found, the coverage of the intervals, errors by class, and every miss."""
    written = grid / "predictions.csv"
    accuracy = sim.judge(grid, kinds=kinds, written=written if written.exists() else None)
    shown: dict[str, Any] = {"float_format": "{:.3f}".format}
    print(readable(accuracy.graded()).to_string())
    print("\nrepeats, or their same-draw errors, spread by more than 10 %:")
    print(accuracy.wide().to_string(index=False, **shown) + "\n")
    print(sim.coverage(accuracy.table))
    print("\n" + accuracy.summary().to_string(**shown))
    table = accuracy.table
    print("\nmore than 10 % off:")
    print(table[table["error"].abs() > 0.1].to_string(index=False, **shown))


def check() -> None:
    """Calibrate, predict, measure one cell of each class here and now, and print the table."""
    with tempfile.TemporaryDirectory() as place:
        grid = Path(place) / "grid"
        grid.mkdir()
        shutil.copy(DATA / "lab.toml", place)
        asyncio.run(calibrate(grid))
        recorded = Grid.read(DATA / "grid").cells
        first = [next(cell for cell in recorded if cell.kind == kind) for kind in KINDS]
        cells = [{**cell.to_dict(), "repeats": 3, "seed": cell.seed + 500} for cell in first]
        (grid / "cells.json").write_text(json.dumps({"cells": cells}), encoding="utf-8")
        predict(grid)
        asyncio.run(measure(grid, list(KINDS), 12))
        report(grid, list(KINDS))


if __name__ == "__main__":
    main()
