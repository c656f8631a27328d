"""Describe, measure, calibrate, predict, compare, plan: the whole way by the command line, with the contract's keys."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
import redis
from command_line import COMMAND, QUICK, answer, saqkit
from conftest import Measured

from saqkit.spec.runs import Run

MEASURES = ["makespan_s", "throughput_users_per_s", "latency_mean_s", "latency_p50_s", "latency_p95_s",
            "latency_p99_s", "wait_p50_s", "wait_p95_s", "wait_p99_s", "attempts", "retries", "dead", "users_done",
            "users_failed"]  # fmt: skip
SETTINGS = {"topology", "users", "workers", "concurrency", "batch_size", "hosts", "seed", "replications"}


def test_systems_lists_what_ships() -> None:
    found = answer("systems")
    assert [set(one) for one in found] == [{"name", "title", "queues", "job_types"}] * len(found)
    assert "school-events" in [one["name"] for one in found]
    assert "school-events" in saqkit("systems").stdout


def test_show_has_schedules_and_bounds_and_follows_overrides() -> None:
    said = answer("show", "school-events")
    assert set(said) == {"topology", "schedules", "firings", "bounds", "real_only"}
    assert said["schedules"]["notify"]["delays_s"] == [5.0, 25.0]
    assert "queues.notifications.rate_limit" in [bound["at"] for bound in said["bounds"]]
    free = answer("show", "school-events", "--set", "queues.notifications.rate_limit=none")
    assert "queues.notifications.rate_limit" not in [bound["at"] for bound in free["bounds"]]
    drawn = saqkit("show", "school-events").stdout
    assert "announce" in drawn
    assert max(map(len, drawn.splitlines())) <= 100


def test_measure_prints_the_measures_and_saves_the_run(measured: Measured) -> None:
    """The environment named a broker that refuses: `measure` must not have looked at it."""
    said, run = measured.said, Run.load(measured.path)
    assert list(said) == [*MEASURES, "disturbed", "disturbed_by"]
    assert said["users_done"] + said["users_failed"] == 120
    assert said["attempts"] == 7  # one fan-out and six batches of 20
    assert said["disturbed"] == bool(said["disturbed_by"])
    assert {name: said[name] for name in MEASURES} == run.measures()
    assert (run.deployment.workers, run.deployment.concurrency, run.seed) == (2, 3, 7)
    assert run.topology.job_types["announce"].fan_out.batch_size == 20  # type: ignore[union-attr]
    assert run.topology.queues["notifications"].rate_limit is None
    assert run.topology.providers["email"].latency.mean_s == 0.002


def test_measure_on_a_given_broker_leaves_no_key(redis_url: str, tmp_path: Path) -> None:
    """The workload is from a file, one number of it overridden; the deployment's groups are from a file too."""
    (tmp_path / "w.toml").write_text('[arrivals]\nkind = "recorded"\nat_s = [0.0, 0.1]\nusers = [10, 20]\n')
    (tmp_path / "d.toml").write_text('[[groups]]\nqueues = ["notifications"]\nprocesses = 1\n')
    out = tmp_path / "run.parquet"
    done = saqkit("measure", "school-events", "--workload", str(tmp_path / "w.toml"), "--deployment",
                  str(tmp_path / "d.toml"), "--set", "workload.arrivals.users=[10, 30]", *QUICK, "--redis", redis_url,
                  "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "school-events: " in done.stdout
    assert str(out) in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    found = Run.load(out).measures()
    assert found["users_done"] + found["users_failed"] == 40
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []


def test_probe_measures_this_host(redis_url: str) -> None:
    found = answer("probe", "--seconds", "0.5", "--no-queue", "--redis", redis_url)
    assert found["cores"] >= 1
    assert found["cpu_scale"] > 0
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []


def test_calibrate_writes_a_profile_of_its_runs(measured: Measured, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    said = answer("calibrate", str(measured.path), "--out", str(out))
    assert set(said) == {"profile", "host", "fitted_on", "runs", "job_types", "residual", "diagnostics"}
    assert said["job_types"] == ["announce", "notify"]
    assert said["profile"] == str(out)
    assert json.loads(out.read_text())["runs"] == said["runs"]


def test_predict_gives_an_object_for_every_combination(profile: Path) -> None:
    said = answer("predict", "school-events", "--users", "100,200", "--workers", "1,2", "--concurrency", "5,10",
                  "--batch-size", "20", "--profile", str(profile), "--replications", "2", *QUICK)  # fmt: skip
    assert [(one["users"], one["workers"], one["concurrency"]) for one in said] == [
        (users, workers, slots) for users in (100, 200) for workers in (1, 2) for slots in (5, 10)
    ]
    for one in said:
        assert set(one) == {*SETTINGS, *MEASURES, "bottleneck", "utilisation"}
        assert all(set(one[name]) == {"mean", "lo", "hi", "mean_lo", "mean_hi"} for name in MEASURES)
        assert set(one["utilisation"]) == {"slots", "loop", "cores", "broker", "database", "provider", "rate_limit"}
        assert one["batch_size"] == 20
        assert one["users_done"]["mean"] + one["users_failed"]["mean"] == pytest.approx(one["users"])
    assert said[4]["makespan_s"]["mean"] > said[0]["makespan_s"]["mean"]


def test_predict_takes_overrides_files_and_slots_by_queue(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('[arrivals]\nkind = "burst"\nusers = 50\n')
    common = ("--profile", "nominal", "--replications", "1")
    (slow,) = answer("predict", "school-events", "--workload", str(tmp_path / "w.toml"), *common,
                     "--concurrency", "notifications=3", "--set", "deployment.cores=1",
                     "--set", "providers.email.latency.mean_s=1")  # fmt: skip
    (fast,) = answer("predict", "school-events", "--users", "9", "--set", "workload.arrivals.users=50", *common)
    assert (slow["users"], slow["concurrency"], fast["users"], fast["concurrency"]) == (50, 3, 50, 5)
    assert slow["makespan_s"]["mean"] > 5 * fast["makespan_s"]["mean"]
    shown = saqkit("predict", "school-events", "--users", "50,60", *common)
    assert shown.stdout.splitlines()[2].split()[0] == "50"
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_compare_shows_the_error_and_says_that_the_profile_knew_the_run(measured: Measured, profile: Path) -> None:
    done = saqkit("compare", str(measured.path), "--profile", str(profile), "--replications", "2", "--json")
    said = json.loads(done.stdout)
    assert list(said) == [*MEASURES, "in_sample"]
    assert said["in_sample"] is True
    assert done.stderr.startswith("warning: the profile was fitted on this very run")
    for name in MEASURES:
        row = said[name]
        assert set(row) == {"measured", "predicted", "lo", "hi", "error", "inside"}
        assert row["measured"] == measured.said[name]
        assert row["inside"] is (row["lo"] - 1e-9 <= row["measured"] <= row["hi"] + 1e-9)
    row = said["makespan_s"]
    assert row["error"] == pytest.approx((row["predicted"] - row["measured"]) / row["measured"])
    other = answer("compare", str(measured.path), "--profile", "nominal", "--replications", "1")
    assert other["in_sample"] is False
    shown = saqkit("compare", str(measured.path), "--profile", "nominal", "--replications", "1").stdout
    assert max(map(len, shown.splitlines())) <= 100


def test_plan_finds_a_deployment_or_says_why_there_is_none() -> None:
    common = ("plan", "school-events", "--users", "400", "--profile", "nominal", "--replications", "3")
    keys = ["feasible", "workers", "concurrency", "batch_size", "cost_per_hour", "probability", "headroom",
            "bottleneck", "next_bottleneck", "reason"]  # fmt: skip
    said = answer(*common, "--target", "p95<=60s @ 0.9", "--price", "0.25")
    assert list(said) == keys
    assert said["feasible"] is True
    assert said["cost_per_hour"] == 0.25 * said["workers"]
    hopeless = answer(*common, "--target", "drain<=10ms", "--max-workers", "1")
    assert hopeless["feasible"] is False
    assert "no deployment" in hopeless["reason"]


def test_a_progress_bar_is_on_standard_error_of_a_terminal_only() -> None:
    arguments = ["predict", "school-events", "--users", "50,60", "--profile", "nominal", "--replications", "1"]
    for extra, shown in (([], True), (["--json"], False)):
        ours, theirs = pty.openpty()
        command = subprocess.Popen([*COMMAND, *arguments, *extra], stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how Linux says that nobody has the terminal open any more
            while some := os.read(ours, 4096):
                seen += some
        os.close(ours)
        out, _ = command.communicate(timeout=60)
        assert command.returncode == 0
        assert (b"predicting" in seen) is shown
        assert b"\x1b" not in out
