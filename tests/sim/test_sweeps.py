"""Sweeps: the same however they are shared out, told beforehand, interruptible, and with memory that stays flat."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_run import LAB, lab

import sim
from saqkit.errors import DescriptionError, UsageError
from saqkit.spec.workload import Poisson, Workload
from sim.analysis.statistics import enough, intervals
from sim.running.progress_bar import text
from sim.running.scenario import cautions
from sim.running.sweeping import price

COMMAND = [sys.executable, "-m", "saqkit.cli", "predict", str(LAB), "--profile", "nominal"]
CELLS: dict[str, Any] = {"users": [100, 400], "workers": [1, 2], "concurrency": [5, 20]}


def test_a_sweep_is_the_same_however_many_jobs_share_it() -> None:
    alone = sim.predict(lab(), **CELLS, replications=2)
    shared = sim.predict(lab(), **CELLS, replications=2, n_jobs=2, bottlenecks=True)
    assert json.dumps(shared.to_dicts()) == json.dumps(alone.to_dicts())
    assert shared.attempts.equals(alone.attempts)


@pytest.mark.parametrize("backend", ["threading", "multiprocessing", "sequential"])
def test_joblib_says_where_the_sweep_runs(backend: str) -> None:
    """`multiprocessing`, as Ray, cannot give results one by one; the sweep goes on some combinations at a time."""
    import joblib

    alone = sim.predict(lab(), **CELLS, replications=1, keep="summary").summary()
    with joblib.parallel_config(backend=backend, n_jobs=2):
        told: list[tuple[int, int]] = []
        there = sim.predict(lab(), **CELLS, replications=1, keep="summary", progress=lambda *at: told.append(at))
    assert there.summary().equals(alone)
    assert told == [(n, 8) for n in range(1, 9)]


def test_a_summary_is_all_that_is_kept_when_that_is_asked_for() -> None:
    whole = sim.predict(lab(), users=[100, 200], replications=3)
    brief = sim.predict(lab(), users=[100, 200], replications=3, keep="summary")
    assert brief.to_dicts() == whole.to_dicts()
    assert not any(hasattr(outcome, "rows") for cell in brief for outcome in cell.outcomes)
    for asked in (lambda: brief.attempts, lambda: brief.attempts_of(1), brief.combinations[0].outcomes[0].attempts):
        with pytest.raises(UsageError, match='keep="attempts"'):
            asked()


def test_replications_follow_precision_and_its_bounds() -> None:
    def run(**how: Any) -> int:
        return int(sim.predict(lab(), users=300, **how).combinations[0].settings["replications"])

    assert run(precision=0.5) == 5
    assert run(precision=0.001, max_replications=8) == 8
    assert run(precision=0.001, max_replications=3) == 3
    assert run(replications=2, precision=0.5) == 2


def test_no_replication_begins_after_the_time_that_a_combination_may_take() -> None:
    (cell,) = sim.predict(lab(), users=300, precision=1e-6, max_seconds=1e-9)
    assert cell.settings["replications"] == 2, "two show a spread"
    assert cell.missed == "makespan_s"
    makespan = cell.measures["makespan_s"]
    assert cell.half_width == pytest.approx(makespan["mean_hi"] / makespan["mean"] - 1)
    (patient,) = sim.predict(lab(), users=300, precision=0.5, max_seconds=1e6)
    assert (patient.settings["replications"], patient.missed) == (5, "")
    (exact,) = sim.predict(lab(), users=300, replications=4, max_seconds=1e-9)
    assert (exact.settings["replications"], exact.missed) == (4, "")
    with pytest.raises(UsageError, match="max_seconds=0: a number above 0"):
        sim.predict(lab(), users=300, max_seconds=0)


def test_the_command_says_where_it_stopped_and_what_runs_longer() -> None:
    done = subprocess.run([*COMMAND, "--users", "200,300", "--seconds", "0.000001", "--precision", "0.0001"],
                          capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: row")]
    assert len(notes) == 2
    assert re.match(r"note: row 1: after 2 runs the mean of makespan_s is known to \d+\.\d%, not to 0\.0%", notes[0])
    assert "--replications R and --seconds S allow more" in notes[0]


def test_a_stream_is_repeated_until_its_latency_is_known_not_its_makespan() -> None:
    workload = Workload(arrivals=Poisson(rate_per_s=3, duration_s=20, users_per_event=40))
    (cell,) = sim.predict(lab(), workload=workload, precision=0.02, max_replications=30, keep="summary")
    latency, replications = cell.measures["latency_mean_s"], cell.settings["replications"]
    assert replications > 5
    assert replications == 30 or latency["mean_hi"] - latency["mean"] <= 0.02 * latency["mean"]


def stop_at(count: int) -> Any:
    def told(done: int, of: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return told


@pytest.mark.filterwarnings("error:.*tasks which were still being processed")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interrupt_keeps_what_is_done(n_jobs: int) -> None:
    everything = sim.predict(lab(), **CELLS, replications=1)
    with pytest.raises(sim.Interrupted, match="3 of 8 combinations") as stopped:
        sim.predict(lab(), **CELLS, replications=1, n_jobs=n_jobs, progress=stop_at(3))
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert stopped.value.partial.to_dicts() == everything.to_dicts()[:3]


def test_an_interrupt_before_anything_is_done_is_just_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Iterator[object]:
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.prediction.sweep", never)
    with pytest.raises(KeyboardInterrupt) as stopped:
        sim.predict(lab(), users=100)
    assert not isinstance(stopped.value, sim.Interrupted)


def test_a_million_combinations_are_not_started_unasked() -> None:
    million: dict[str, Any] = {"users": list(range(1, 101)), "workers": list(range(1, 101)), "batch_size": [100] * 100}
    with pytest.raises(UsageError, match=r"^1,000,000 combinations take about .* confirm=True"):
        sim.predict(lab(), **million)
    told: list[str] = []
    with pytest.raises(UsageError, match="1,000,000 combinations"):
        sim.predict(lab(), **million, confirm=lambda cost: bool(told.append(cost)))
    assert told[0].startswith("1,000,000 combinations take about ")
    with pytest.raises(sim.Interrupted) as stopped:
        sim.predict(lab(), **million, confirm=True, replications=1, keep="summary", progress=stop_at(2))
    assert len(stopped.value.partial) == 2


def test_the_price_grows_with_combinations_users_and_replications() -> None:
    from sim.running.replicating import Rules
    from sim.running.scenario import Scenario, deploy

    trial = Scenario(lab(), deploy(None, 1, 5), Workload.burst(100), sim.Profile.nominal(), 0)
    rules = Rules(10, 0.01, 20, "summary", False)
    said = price(trial, [100], 1_000_000, rules, 1)
    assert said.startswith("1,000,000 combinations take about ")
    assert said.endswith(("days", "hours"))
    assert " to " in price(trial, [10**6], 10**6, replace(rules, replications=None), 1)


def test_the_command_line_refuses_a_million_where_nobody_can_agree() -> None:
    numbers = ",".join(map(str, range(1, 102)))
    done = subprocess.run([*COMMAND, "--users", numbers, "--workers", numbers], capture_output=True, text=True,
                          timeout=100, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("saqkit: predict: 10,201 combinations take about ")
    assert "--yes" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_prints_what_is_done_and_ends_with_130() -> None:
    """With standard error on a terminal, whose bar says how far it is, and the whole group interrupted."""
    ours, theirs = pty.openpty()
    arguments = [*COMMAND, "--users", ",".join(["2000"] * 4000), "--replications", "1"]
    command = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, process_group=0)
    os.close(theirs)
    seen = b""
    while not re.search(rb"[1-9]\d*/4000", seen):
        seen += os.read(ours, 4096)
    os.killpg(command.pid, signal.SIGINT)
    out, _ = command.communicate(timeout=60)
    with suppress(OSError):  # how Linux says that nobody has the terminal open any more
        while some := os.read(ours, 4096):
            seen += some
    os.close(ours)
    assert command.returncode == 130
    said = re.search(rb"interrupted: ([\d,]+) of 4,000 combinations are done", seen)
    assert said is not None
    assert len(out.splitlines()) == 2 + int(said[1].replace(b",", b""))
    assert b"Traceback" not in seen


def test_a_bar_tells_how_far_and_how_long() -> None:
    assert text("predicting", 0, 8, 1.0).endswith(" 0 of 8")
    assert text("predicting", 2, 8, 60.0).endswith(" 2 of 8, about 0:03:00 left")
    assert "█" * 30 in text("predicting", 8, 8, 1.0)


def test_no_bar_is_shown_where_the_output_is_piped() -> None:
    code = f"import sim; sim.predict({str(LAB)!r}, users=[50, 60], replications=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"users": []}, "empty list"),
        ({"users": 10, "precision": 0}, "precision=0"),
        ({"users": 10, "max_replications": 0}, "max_replications=0"),
        ({"users": 10, "keep": "nothing"}, 'either "attempts" or "summary"'),
        ({"users": 10, "n_jobs": 0}, "n_jobs=0"),
        ({"users": 10, "workload": Workload.burst(10)}, "not both"),
    ],
)
def test_what_a_sweep_cannot_be_given_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        sim.predict(lab(), **wrong)


def test_the_last_combination_is_checked_before_the_first_is_simulated() -> None:
    told: list[int] = []
    with pytest.raises(DescriptionError):
        sim.predict(lab(), users=100, concurrency=[5, {"nowhere": 3}], progress=lambda done, of: told.append(done))
    assert told == []


def test_a_profile_of_another_host_or_version_is_named() -> None:
    nominal, topology = sim.Profile.nominal(), lab()
    assert [note for note in cautions(nominal, topology) if "host" in note or "fitted" in note] == []
    host = nominal.host.model_copy(update={"host": "elsewhere.example"})
    away = nominal.model_copy(update={"host": host, "versions": {"saqkit": "99.1", "python": "2.7.18"}})
    found = sim.predict(topology, users=50, profile=away, replications=1).warnings
    assert "elsewhere.example" in found[0]
    assert "saqkit 99.1" in found[1]
    assert "python 2.7.18" in found[2]
    assert "announce, notify" in found[3]


def test_the_command_line_says_what_speaks_against_the_profile(tmp_path: Path) -> None:
    nominal = sim.Profile.nominal()
    host = nominal.host.model_copy(update={"host": "elsewhere.example"})
    path = nominal.model_copy(update={"host": host}).save(tmp_path / "p.json")
    arguments = [*COMMAND[:-1], str(path), "--users", "50", "--replications", "1", "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "warning: the profile is of host elsewhere.example" in done.stderr
    assert json.loads(done.stdout)[0]["users"] == 50


def test_the_command_line_shows_the_verdict_and_the_steady_part(tmp_path: Path) -> None:
    stream = '[arrivals]\nkind = "poisson"\nduration_s = 30\nusers_per_event = 10\nrate_per_s = '
    (tmp_path / "calm.toml").write_text(stream + "8\n")
    (tmp_path / "much.toml").write_text(stream + "40\n")
    shown = {
        name: subprocess.run([*COMMAND, "--workload", str(tmp_path / f"{name}.toml"), "--replications", "2"],
                             capture_output=True, text=True, timeout=100)
        for name in ("calm", "much")
    }  # fmt: skip
    assert "\nstable: the backlog does not grow" in shown["calm"].stdout
    assert "once steady: mean " in shown["calm"].stdout
    assert "\nunstable: the backlog of notifications grows by " in shown["much"].stdout
    assert "once steady" not in shown["much"].stdout


def test_a_higher_level_is_a_wider_interval_around_the_same_mean() -> None:
    values = [9.0, 10.0, 11.0, 10.5, 9.5]
    at_90, at_95 = intervals(values), intervals(values, level=0.95)
    assert at_90["mean"] == at_95["mean"]
    for low, high in (("lo", "hi"), ("mean_lo", "mean_hi")):
        assert at_95[low] < at_90[low] < at_90["mean"] < at_90[high] < at_95[high]


def test_enough_is_enough_at_the_precision_asked_for() -> None:
    values = [9.0, 10.0, 11.0, 10.5, 9.5]  # the half-width is 7.5 % of the mean
    assert not enough(values, 0.07)
    assert enough(values, 0.08)
    assert not enough(values[:4], 0.5)
