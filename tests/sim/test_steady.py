"""Warm-up and cool-down: what counts of a stream, by one rule for measured and simulated runs."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_run import free_profile, lab

import sim
from saqkit.spec import steady, trace
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Poisson, Profile, ProviderOutage, Recorded, Workload


def stream(rate_per_s: float, duration_s: float, users_per_event: int = 1) -> Workload:
    return Workload(arrivals=Poisson(rate_per_s=rate_per_s, duration_s=duration_s, users_per_event=users_per_event))


def single(mean_s: float) -> Topology:
    """Jobs of one user each, of exponential length, and nothing else."""
    return Topology.parse(
        {
            "name": "single",
            "entry": [{"job_type": "notify"}],
            "queues": {"q": {"concurrency": 1}},
            "job_types": {"notify": {"queue": "q", "per_user": {"database": "none", "provider": "email"}}},
            "providers": {"email": {"latency": {"kind": "exponential", "mean_s": mean_s}}},
        }
    )


def test_mser_finds_where_a_known_transient_ends() -> None:
    noise = np.random.default_rng(1)
    for transient in (20, 60, 90):
        values = noise.normal(10, 1, 400)
        values[:transient] -= np.linspace(10, 3, transient)
        assert abs(steady.mser(values) - transient) <= 12


def test_mser_agrees_with_its_definition() -> None:
    values = np.random.default_rng(2).exponential(1, 61)
    statistic = [values[d:].var() / (len(values) - d) for d in range(31)]
    assert steady.mser(values) == int(np.argmin(statistic))


def test_only_a_low_beginning_is_a_warm_up() -> None:
    noise = np.random.default_rng(3)
    for _ in range(50):
        assert steady.warm_up(np.concatenate([noise.normal(30, 1, 40), noise.normal(10, 1, 160)])) == 0
    cuts = [steady.warm_up(noise.normal(10, 1, 200)) for _ in range(200)]
    assert np.mean([cut > 0 for cut in cuts]) < 0.1


def test_users_of_warm_up_and_cool_down_do_not_count_but_everything_else_does() -> None:
    attempts = sim.predict(lab(), workload=stream(2, 60, 100), replications=1).attempts
    counted = steady.Window(10.0, 40.0, True)
    found, whole = steady.measures(attempts, counted), trace.measures(attempts)
    inside = attempts[(attempts["event_at"] >= 10) & (attempts["event_at"] <= 40)]
    served = inside[inside["users_done"] > 0]
    latency = np.repeat(served["finished_at"] - served["event_at"], served["users_done"])
    assert found["latency_mean_s"] == pytest.approx(latency.mean())
    assert found["throughput_users_per_s"] == pytest.approx(served["users_done"].sum() / 30)
    same = ("makespan_s", "attempts", "retries", "dead", "users_done", "users_failed")
    assert {name: found[name] for name in same} == {name: whole[name] for name in same}
    assert found["latency_mean_s"] != whole["latency_mean_s"]
    assert tuple(found) == trace.MEASURES
    assert steady.measures(attempts, None) == whole


def test_the_steady_part_of_a_queue_at_80_percent_waits_as_long_as_theory_says() -> None:
    """M/M/1: the mean time in the system is 1/(μ - λ). The stream begins empty, so the whole run shows less."""
    (cell,) = sim.predict(single(0.1), workload=stream(8, 150), concurrency=1, profile=free_profile(), replications=12)
    assert cell.stable
    assert cell.steady is not None
    found = cell.steady["latency_mean_s"]
    assert abs(found["mean"] - 0.5) < 3 * (found["mean_hi"] - found["mean"])  # a miss by chance: one in 180
    assert found["mean_hi"] - found["mean"] < 0.1
    assert cell.steady["throughput_users_per_s"]["mean"] == pytest.approx(8, rel=0.05)


def test_the_window_is_found_in_any_table_and_lies_inside_the_stream() -> None:
    workload = stream(4, 60, 10)
    tables = [sim.predict(lab(), workload=workload, replications=1, seed=seed).attempts for seed in (1, 2)]
    for runs in (tables, tables[:1]):
        window = steady.window(workload, runs)
        assert window is not None
        last_s = max(run["event_at"].max() for run in runs)
        assert 0 <= window.from_s <= last_s / 2
        assert 0.9 * last_s * 0.95 <= window.to_s < last_s


def test_whole_days_count_of_a_daily_profile() -> None:
    def found(days: int) -> steady.Window:
        daily = Workload(arrivals=Profile(users_per_day=400, hourly=(1.0,) * 12 + (3.0,) * 12, days=days))
        window = steady.window(daily, [sim.predict(single(1.0), workload=daily, replications=1).attempts])
        assert window is not None
        return window

    assert found(1).from_s == 0.0
    assert found(2).from_s == steady.DAY_S
    assert found(2).to_s > 1.9 * steady.DAY_S


def test_bursts_recorded_arrivals_and_faults_are_not_steady() -> None:
    attempts = sim.predict(lab(), users=100, replications=1).attempts
    fault = ProviderOutage(at_s=1, duration_s=1, provider="email")
    for workload in (
        Workload.burst(100),
        Workload(arrivals=Recorded(at_s=(0.0, 1.0))),
        stream(1, 60).model_copy(update={"faults": (fault,)}),
    ):
        assert steady.window(workload, [attempts]) is None
    assert steady.window(stream(1, 60), []) is None
    assert sim.predict(lab(), users=100, replications=1).combinations[0].steady is None


def test_a_stream_of_a_few_events_is_taken_whole_and_said_not_to_have_settled() -> None:
    workload = stream(1, 8)
    window = steady.window(workload, [sim.predict(lab(), workload=workload, replications=1).attempts])
    assert window is not None
    assert window.from_s == 0.0
    assert not window.settled


def test_the_summary_can_be_of_the_steady_part() -> None:
    forecast = sim.predict(lab(), workload=stream(2, 60, 100), replications=2)
    steady_part = forecast.combinations[0].steady
    assert steady_part is not None
    row = forecast.summary(steady=True).iloc[0]
    assert row[("latency_p95_s", "mean")] == steady_part["latency_p95_s"]["mean"]
    assert forecast.summary().iloc[0][("latency_p95_s", "mean")] != row[("latency_p95_s", "mean")]
    said = forecast.to_dicts()[0]["steady"]
    assert said["latency_p95_s"] == steady_part["latency_p95_s"]
    assert 0 <= said["from_s"] < said["to_s"] <= 60
