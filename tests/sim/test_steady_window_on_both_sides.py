"""Of a stream the steady part is compared and judged, in one window on both sides; a closed loop has one too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_run import PROBE, free_profile, lab

import sim
from saqkit.cli import main
from saqkit.spec import steady, trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology
from saqkit.spec.workload import ClosedLoop, KillWorker, Poisson, Workload
from sim.engine.model import Model
from sim.fit.profile import Profile
from sim.judging import Cell, expected, judge

PROFILE = Profile.nominal()
STREAM = Workload(arrivals=Poisson(rate_per_s=4, duration_s=40, users_per_event=50))


def measured(workload: Workload, topology: Topology | None = None) -> Run:
    """A run that the model made itself, with draws that no prediction here sees."""
    described, deployment = topology or lab(), Deployment()
    outcome = Model(described, deployment, workload, PROFILE.costs(described), 11).run()
    rows = outcome.attempts(run="simulated")
    return Run(described, deployment, workload, 11, rows, trace.steps_frame([]), probe=PROBE, name="simulated")


def test_a_stream_is_compared_in_its_steady_part_on_both_sides() -> None:
    run = measured(STREAM)
    found = sim.compare(run, PROFILE, replications=5)
    (cell,) = found.prediction
    assert cell.steady is not None
    assert found.counted == cell.window
    assert found.counted is not None
    table, inside = found.summary(), steady.measures(run.attempts, found.counted)
    for name in ("latency_mean_s", "latency_p95_s", "throughput_users_per_s", "makespan_s"):
        assert table.loc[name, "measured"] == inside[name]
        assert table.loc[name, "predicted"] == cell.steady[name]["mean"]
    assert inside["latency_mean_s"] != run.measures()["latency_mean_s"]
    assert f"from {found.counted.from_s:.0f} s to " in repr(found)


def test_a_burst_is_compared_whole() -> None:
    run = measured(Workload.burst(500))
    found = sim.compare(run, PROFILE, replications=5)
    assert found.counted is None
    assert found.summary().loc["latency_mean_s", "measured"] == run.measures()["latency_mean_s"]


def test_a_stream_beyond_capacity_or_too_short_to_settle_is_said_to_be() -> None:
    much = measured(Workload(arrivals=Poisson(rate_per_s=20, duration_s=20, users_per_event=50)))
    assert "unstable: the backlog" in sim.compare(much, PROFILE, replications=2).warning
    brief = measured(Workload(arrivals=Poisson(rate_per_s=2, duration_s=8, users_per_event=50)))
    assert "no steady state was found" in sim.compare(brief, PROFILE, replications=2).warning


def test_a_stream_is_judged_in_its_steady_part_on_both_sides(tmp_path: Path) -> None:
    place = tmp_path / "grid"
    (place / "runs").mkdir(parents=True)
    cell = {"name": "one", "kind": "stream", "topology": "school-events", "workload": STREAM.to_dict(), "seed": 11,
            "set": {"queues.notifications.rate_limit": "none", "providers.email.latency.mean_s": 0.02}}  # fmt: skip
    run = measured(STREAM, Cell.parse(cell).described(tmp_path))
    run.save(place / "runs" / "one.1.parquet")
    (place / "cells.json").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    table = judge(place, PROFILE, replications=5).table.set_index("measure")
    foreseen = expected(Cell.parse(cell), PROFILE, 5, tmp_path)
    counted = steady.Window(float(table["from_s"].iloc[0]), float(table["to_s"].iloc[0]), True)
    assert 0 <= counted.from_s < counted.to_s < 40
    inside = steady.measures(run.attempts, counted)
    for name in ("latency_mean_s", "latency_p95_s", "latency_p99_s"):
        assert table.loc[name, "measured"] == pytest.approx(inside[name])
        assert table.loc[name, "predicted"] == pytest.approx(foreseen[name]["mean"])
    assert table["same_draw_error"].abs().max() < 0.02
    assert inside["latency_mean_s"] != trace.measures(run.attempts)["latency_mean_s"]


# --- closed loops ---------------------------------------------------------------------------------------------------


def single(mean_s: float, concurrency: int = 1) -> Topology:
    return Topology.parse(
        {
            "name": "single",
            "entry": [{"job_type": "send"}],
            "queues": {"q": {"concurrency": concurrency}},
            "job_types": {"send": {"queue": "q", "per_user": {"database": "none", "provider": "p"}}},
            "providers": {"p": {"latency": {"kind": "exponential", "mean_s": mean_s}}},
        }
    )


def loop(clients: int, think: dict[str, Any], duration_s: float) -> Workload:
    return Workload(arrivals=ClosedLoop.parse({"clients": clients, "think": think, "duration_s": duration_s}))


def test_a_closed_loop_is_stable_however_much_it_asks_for() -> None:
    crowded = loop(40, {"kind": "constant", "mean_s": 0.01}, 60)
    (cell,) = sim.predict(single(0.1), workload=crowded, profile=free_profile(), replications=2)
    assert cell.stable is True
    assert cell.verdict.startswith("stable: a closed loop never has more than its 40 events under way; the slots are")
    said = cell.to_dict()
    assert said["backlog_jobs_per_s"] == 0.0
    assert said["steady"]["from_s"] < said["steady"]["to_s"] <= 60


def test_the_rush_of_all_clients_at_once_is_its_warm_up() -> None:
    """50 clients who think for 10 s begin at once: the first wave waits up to 5 s, later ones hardly ever do."""
    workload = loop(50, {"kind": "exponential", "mean_s": 10.0}, 200)
    (cell,) = sim.predict(single(0.1), workload=workload, profile=free_profile(), replications=6)
    assert cell.window is not None
    assert cell.steady is not None
    assert 0 < cell.window.from_s < 60
    assert cell.window.settled
    assert cell.steady["wait_p95_s"]["mean"] < 0.6 * cell.measures["wait_p95_s"]["mean"]


def test_the_steady_throughput_of_a_saturated_loop_is_that_of_its_slots() -> None:
    workload = loop(20, {"kind": "exponential", "mean_s": 0.5}, 100)
    (cell,) = sim.predict(single(0.1), workload=workload, profile=free_profile(), replications=6)
    assert cell.steady is not None
    assert cell.steady["throughput_users_per_s"]["mean"] == pytest.approx(10, rel=0.03)


def test_a_closed_loop_with_a_fault_has_no_steady_part() -> None:
    workload = loop(4, {"kind": "constant", "mean_s": 0.2}, 20)
    struck = workload.model_copy(update={"faults": (KillWorker(at_s=5.0),)})
    (cell,) = sim.predict(single(0.1), workload=struck, replications=1)
    assert cell.stable is True
    assert (cell.window, cell.steady) == (None, None)


def test_only_where_all_come_at_once_a_high_beginning_is_a_warm_up() -> None:
    noise = np.random.default_rng(3)
    high = np.concatenate([noise.normal(30, 1, 40), noise.normal(10, 1, 160)])
    assert steady.warm_up(high) == 0
    assert abs(steady.warm_up(high, all_at_once=True) - 40) <= 2
    low = np.concatenate([noise.normal(3, 1, 40), noise.normal(10, 1, 160)])
    assert steady.warm_up(low) == steady.warm_up(low, all_at_once=True) > 30


def test_a_run_of_a_closed_loop_is_compared_in_its_steady_part() -> None:
    run = measured(loop(50, {"kind": "exponential", "mean_s": 10.0}, 100), single(0.1))
    found = sim.compare(run, PROFILE, replications=2)
    inside = steady.measures(run.attempts, found.counted)["latency_mean_s"]
    assert found.counted is not None
    assert found.summary().loc["latency_mean_s", "measured"] == inside < run.measures()["latency_mean_s"]


def test_the_command_line_says_which_part_it_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured(STREAM).save(tmp_path / "run.parquet")
    told = ["compare", str(path), "--profile", "nominal", "--replications", "2"]
    assert main(told) == 0
    assert "of users who came from " in capsys.readouterr().out
    assert main([*told, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["steady"]["to_s"] < 40
    whole = measured(Workload.burst(200)).save(tmp_path / "burst.parquet")
    assert main(["compare", str(whole), "--profile", "nominal", "--replications", "2", "--json"]) == 0
    assert "steady" not in json.loads(capsys.readouterr().out)
