"""The files of `data/` are what `data/README.md` says they are."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import saqkit
import sim
from sim.fit.observations import fingerprint
from sim.judging import KINDS, MEASURES, Cell, Grid

DATA = Path(__file__).parent.parent / "data"
GRID = DATA / "grid"
MOST_BYTES = 20_000_000


def test_every_file_is_described_and_everything_described_is_there() -> None:
    text = DATA.joinpath("README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE)
    described = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    files = [str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file() and path.name != "README.md"]
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in described)] == []
    assert [pattern for pattern in described if not any(fnmatch(name, pattern) for name in files)] == []


def test_the_recorded_run_is_whole_and_undisturbed() -> None:
    run = saqkit.Run.load(DATA / "runs" / "quickstart.parquet")
    found = run.measures()
    assert found["users_done"] + found["users_failed"] == 300
    assert found["attempts"] == 1 + 300 / 25
    assert run.disturbed == ()


def test_the_profile_is_the_one_that_the_recorded_run_gives() -> None:
    stored = sim.Profile.load(DATA / "profile-quickstart.json")
    fitted = sim.calibrate(DATA / "runs" / "quickstart.parquet")
    assert stored.runs == fitted.runs
    for name, part in fitted.job_types.items():
        for key, value in part:
            if key != "fan_out":
                assert getattr(stored.job_types[name], key).value == pytest.approx(value.value, rel=1e-6), (name, key)
    assert stored.host.cpu_scale.value == pytest.approx(fitted.host.cpu_scale.value, rel=1e-6)


def recorded(path: Path) -> dict[str, Any]:
    """What a run's file says about it, without its tables."""
    return dict(json.loads((pq.read_schema(path).metadata or {})[b"saqkit"]))


def runs_by_cell() -> dict[str, dict[int, dict[str, Any]]]:
    """What is recorded of each configuration of the grid, by its repeat from 1 on."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((GRID / "runs").glob("*.parquet")):
        name, repeat, _ = path.name.rsplit(".", 2)
        found.setdefault(name, {})[int(repeat)] = recorded(path)
    return found


def as_run(cell: Cell) -> dict[str, Any]:
    """A configuration as the file of its run has to describe it."""
    parts = {"topology": cell.described(DATA), "deployment": cell.deployment, "workload": cell.workload}
    return dict(json.loads(json.dumps({name: part.to_dict() for name, part in parts.items()})))


def test_the_grid_is_small_enough_to_be_cloned() -> None:
    assert sum(path.stat().st_size for path in GRID.rglob("*") if path.is_file()) < MOST_BYTES


def test_each_run_of_the_grid_is_of_its_configuration() -> None:
    cells = {cell.name: cell for cell in Grid.read(GRID).cells}
    for name, repeats in runs_by_cell().items():
        expected = as_run(cells[name])
        for repeat, found in repeats.items():
            assert {part: found[part] for part in expected} == expected, f"{name}.{repeat}"
            assert found["seed"] == cells[name].seed + repeat - 1


def test_every_class_of_the_grid_has_five_configurations_that_were_measured() -> None:
    measured = runs_by_cell()
    kinds = [cell.kind for cell in Grid.read(GRID).cells if cell.name in measured]
    assert {kind: kinds.count(kind) for kind in KINDS if kinds.count(kind) < 5} == {}


def test_predictions_were_written_for_every_configuration() -> None:
    table = pd.read_csv(GRID / "predictions.csv").set_index(["cell", "measure"])
    wanted = {(cell.name, measure) for cell in Grid.read(GRID).cells for measure in MEASURES[cell.kind]}
    assert set(table.index) == wanted
    assert ((table["lo"] <= table["mean"]) & (table["mean"] <= table["hi"])).all()


def test_the_grids_profile_is_fitted_to_few_small_runs_that_were_measured_before_the_grid() -> None:
    small = sorted((GRID / "calibration").glob("*.parquet"))
    runs = [saqkit.Run.load(path) for path in small]
    assert len(runs) <= 5
    assert max(run.measures()["users_done"] for run in runs) <= 2_000
    assert set(sim.Profile.load(GRID / "profile.json").runs) == {fingerprint(run) for run in runs}
    last = max(str(run.facts["date"]) for run in runs)
    earlier = [name for name, runs in runs_by_cell().items() for run in runs.values() if run["facts"]["date"] <= last]
    assert earlier == []
