"""The estimates without a model are those of the envelope: here they are reckoned by hand."""

from __future__ import annotations

import math

import pytest
from simulated_run import lab

from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import load
from saqkit.spec.workload import Workload
from sim.analysis import theory
from sim.baselines import baselines

DEPLOYMENT = Deployment(workers=2, concurrency=5)
QUICK = {"providers__email__latency": {"kind": "constant", "mean_s": 0.01}, "job_types__notify__per_user__cpu_us": 0}


def test_a_burst_is_users_times_time_over_slots() -> None:
    topology = lab(**QUICK).with_batch_size(50)
    found = baselines(topology, DEPLOYMENT, Workload.burst(1_000))
    assert found["makespan_s"][0] == pytest.approx(1_000 * 0.01 / 10)
    assert found["makespan_s"][1] == theory.burst_makespan_s(20, 0.5, 10)
    assert found["throughput_users_per_s"][0] == pytest.approx(1_000)
    assert found["latency_p95_s"][0] == pytest.approx(0.95)


def test_events_of_a_trace_are_added_up() -> None:
    trace = Workload.parse({"arrivals": {"kind": "recorded", "at_s": [0.0, 1.0], "users": [60, 40]}})
    found = baselines(lab(**QUICK).with_batch_size(50), DEPLOYMENT, trace)
    assert found["makespan_s"] == (pytest.approx(0.1), theory.burst_makespan_s(3, 100 / 3 * 0.01, 10))


def test_failures_cost_their_repeats() -> None:
    topology = lab(**QUICK, providers__email__temporary_share=0.1)
    tries = theory.expected_attempts(0.1, topology.job_types["notify"].retry.max_attempts)
    found = baselines(topology, DEPLOYMENT, Workload.burst(1_000))
    assert found["makespan_s"][0] == pytest.approx(1_000 * 0.01 * tries / 10)
    assert tries > 1.1


@pytest.mark.parametrize(("unit", "expected_s"), [("users", 3_000 / 200), ("jobs", 3_000 / 100 / 200)])
def test_a_rate_limit_counts_where_it_is_what_takes_longest(unit: str, expected_s: float) -> None:
    limit = {"limit": 200, "period_s": 1.0, "unit": unit}
    found = baselines(lab(**QUICK, queues__notifications__rate_limit=limit), DEPLOYMENT, Workload.burst(3_000))
    assert found["makespan_s"][0] == pytest.approx(max(expected_s, 3_000 * 0.01 / 10))


def test_a_stream_is_an_m_m_c_queue() -> None:
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 800, "duration_s": 10}})
    found = baselines(lab(**QUICK, entry=[{"job_type": "notify"}]), DEPLOYMENT, workload)
    assert found["latency_mean_s"] == (pytest.approx(0.01), pytest.approx(theory.mmc_latency_s(800, 0.01, 10)))
    assert found["latency_p99_s"][1] == pytest.approx(theory.mmc_latency_quantile_s(0.99, 800, 0.01, 10))
    assert "makespan_s" not in found


def test_beyond_capacity_a_stream_has_no_latency() -> None:
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 2_000, "duration_s": 10}})
    found = baselines(lab(**QUICK, entry=[{"job_type": "notify"}]), DEPLOYMENT, workload)
    assert math.isinf(found["latency_mean_s"][1])


def test_the_shipped_topology_has_estimates_too() -> None:
    found = baselines(load("school-events"), DEPLOYMENT, Workload.burst(100_000))
    assert found["makespan_s"][0] >= 100_000 / 100 / 10  # ten jobs of a hundred a second
