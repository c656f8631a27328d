"""A recorded grid is judged cell by cell, and what cannot be judged is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_run import lab, simulated_run

import saqkit
from saqkit.errors import SaqkitError
from saqkit.spec.trace import attempts_frame
from saqkit.spec.workload import Workload
from sim.fit.profile import Profile
from sim.judging import Grid, judge, recovery_s

DATA = Path(__file__).parent.parent.parent / "data"


def grid(folder: Path, **changes: Any) -> Path:
    """A grid of one cell, whose runs are the recorded quick start, twice."""
    run = saqkit.Run.load(DATA / "runs" / "quickstart.parquet")
    cell = {"name": "one", "kind": "io", "topology": "school-events", "batch_size": 25,
            "deployment": run.deployment.to_dict(), "workload": run.workload.to_dict(), "seed": run.seed}  # fmt: skip
    place = folder / "grid"
    (place / "runs").mkdir(parents=True)
    (place / "cells.json").write_text(json.dumps({"cells": [cell | changes]}), encoding="utf-8")
    for n in (1, 2):
        shutil.copy(DATA / "runs" / "quickstart.parquet", place / "runs" / f"one.{n}.parquet")
    shutil.copy(DATA / "profile-quickstart.json", place / "profile.json")
    return place


def test_a_grid_is_judged_by_cell_and_by_class(tmp_path: Path) -> None:
    accuracy = judge(grid(tmp_path), replications=5)
    table = accuracy.table.set_index("measure")
    run = saqkit.Run.load(DATA / "runs" / "quickstart.parquet")
    assert table.loc["makespan_s", "measured"] == run.measures()["makespan_s"]
    assert (table["runs"] == 2).all()
    assert (table["spread"] == 0).all()
    assert table["error"].abs().max() < 0.15
    assert table["same_draw_error"].abs().max() < 0.06
    assert table.loc["makespan_s", "lo"] < table.loc["makespan_s", "predicted"] < table.loc["makespan_s", "hi"]
    summary = accuracy.summary()
    assert list(summary.index) == ["io"]
    assert summary.loc["io", "error worst"] == table["error"].abs().max()
    assert len(accuracy.by_measure()) == len(table)
    assert accuracy.plot().get_ylabel().endswith("%")


def test_predictions_that_were_written_before_are_judged_as_they_were_written(tmp_path: Path) -> None:
    place = grid(tmp_path)
    live, written = judge(place, replications=2).table, tmp_path / "predictions.csv"
    rows = [(m, 2 * v, 1.9 * v, 2.1 * v) for m, v in zip(live["measure"], live["measured"], strict=True)]
    text = ["cell,kind,measure,mean,lo,hi", *(f"one,io,{m},{mean!r},{lo!r},{hi!r}" for m, mean, lo, hi in rows)]
    written.write_text("\n".join(text), encoding="utf-8")
    found = judge(place, replications=2, written=written).table
    assert found["error"].to_numpy() == pytest.approx(1.0)
    assert (found["inside"] == 0).all()
    assert found["same_draw_error"].equals(live["same_draw_error"])
    assert found["yardstick_error"].equals(live["yardstick_error"])
    assert ((found["busy"] > 0) & (found["busy"] <= found["load"]) & (found["load"] <= 1)).all()
    written.write_text("\n".join(text[:-1]), encoding="utf-8")
    with pytest.raises(SaqkitError, match=r"no prediction of \w+ for cell one"):
        judge(place, written=written)
    written.write_text("tea", encoding="utf-8")
    with pytest.raises(SaqkitError, match="no table of predictions"):
        judge(place, written=written)


def test_a_grid_is_graded_by_what_is_demanded(tmp_path: Path) -> None:
    accuracy = judge(grid(tmp_path), replications=2)
    graded = accuracy.graded()
    assert graded.loc["all bursts: makespan, throughput", "values"] == 2
    assert accuracy.wide().empty


def test_a_slower_host_is_predicted_to_be_slower(tmp_path: Path) -> None:
    profile = Profile.load(DATA / "profile-quickstart.json")
    slow = profile.at(2.0)
    assert slow.host.cpu_scale.value == 2 * profile.host.cpu_scale.value
    assert slow.host.broker_wire_s == profile.host.broker_wire_s
    assert slow.job_types["notify"].user_cpu_s.value == 2 * profile.job_types["notify"].user_cpu_s.value
    run = saqkit.Run.load(DATA / "runs" / "quickstart.parquet")
    assert 0.8 < profile.speed_of(run) < 1.25


def test_a_run_of_described_work_tells_its_own_speed() -> None:
    nominal = Profile.nominal()
    work = {"job_types__notify__per_user__cpu_us": 500, "providers__email__latency__mean_s": 0.002}
    run = simulated_run(nominal.at(1.4), lab(**work), users=500, workers=1, concurrency=5, seed=3)
    assert nominal.speed_of(run) == 1.0  # its made-up probe knows nothing
    assert nominal.own_speed_of(run) == pytest.approx(1.4, rel=0.05)
    assert nominal.at(1.4).own_speed_of(run) == pytest.approx(1.0, rel=0.05)
    idle = simulated_run(nominal.at(1.4), lab(), users=500, workers=1, concurrency=5, seed=3)
    assert nominal.own_speed_of(idle) == nominal.speed_of(idle)


def test_recovery_from_a_kill_lasts_until_the_last_lost_job_is_done() -> None:
    rows = [("a", "lost", 7.0), ("a", "done", 9.5), ("b", "done", 20.0)]
    table = attempts_frame([{"job": job, "outcome": o, "finished_at": at} for job, o, at in rows])
    kill = {"arrivals": {"kind": "burst", "users": 1}, "faults": [{"kind": "kill_worker", "at_s": 2.0}]}
    assert recovery_s(table, Workload.parse(kill)) == 7.5


def test_recovery_from_an_outage_lasts_until_the_last_job_that_failed_in_it_is_done() -> None:
    rows = [("a", "retry", 3.0), ("a", "done", 9.0), ("b", "retry", 1.0), ("b", "done", 30.0)]
    table = attempts_frame([{"job": job, "outcome": o, "finished_at": at} for job, o, at in rows])
    outage = {"kind": "provider_outage", "at_s": 2.0, "duration_s": 3.0, "provider": "email"}
    assert recovery_s(table, Workload.parse({"arrivals": {"kind": "burst", "users": 1}, "faults": [outage]})) == 4.0
    assert np.isnan(recovery_s(table, Workload.burst(1)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cells.json"),
        ("[", "cells.json"),
        ('{"cells": []}', "cells"),
        ('{"cells": [{"name": "x", "kind": "tea", "topology": "lab.toml"}]}', "tea"),
    ],
)
def test_a_folder_that_is_no_grid_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "cells.json").write_text(text, encoding="utf-8")
    with pytest.raises(SaqkitError, match=says):
        Grid.read(tmp_path)


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    place = grid(tmp_path)
    cells = json.loads((place / "cells.json").read_text(encoding="utf-8"))["cells"]
    (place / "cells.json").write_text(json.dumps({"cells": cells * 2}), encoding="utf-8")
    with pytest.raises(SaqkitError, match='two cells are called "one"'):
        Grid.read(place)


def test_a_grid_without_runs_is_refused(tmp_path: Path) -> None:
    place = grid(tmp_path, name="other")
    with pytest.raises(SaqkitError, match="no recorded run"):
        judge(place)
