"""Open queues: the model repeats a recursion on its own draws to the last digits, and the recursion keeps the theory.

So the model's waits are not compared with Erlang's formula through noise: they *are* those of the recursion, which is
quick enough for millions of customers and has an interval of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from recursions import begins, latencies, mean_by_replications, mean_of, poisson, surprises, waits_of_one_server
from simulated_run import free_profile

from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.distributions import AnyDistribution, Constant, Exponential, Lognormal
from saqkit.spec.draws import Stream, uniforms
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.analysis import theory
from sim.engine.model import Model

EXPONENTIAL = Exponential(mean_s=0.1)
SERVICES = [Constant(mean_s=0.1), EXPONENTIAL, Lognormal(mean_s=0.1, cv=1.5)]
CV = {"constant": 0.0, "exponential": 1.0, "lognormal": 1.5}
SHARES = [0.1, 0.2, 0.3, 0.4]
LEVELS = ["critical", "high", "normal", "low"]


def single(latency: AnyDistribution, shares: list[float] | None = None) -> Topology:
    """Jobs of one user, who takes a provider's time; with `shares`, at the four priorities."""
    entry: list[dict[str, Any]] = [{"job_type": "send"}]
    if shares:
        entry = [{"job_type": "send", "priority": p, "share": s} for p, s in zip(LEVELS, shares, strict=True)]
    return Topology.parse(
        {
            "name": "single",
            "entry": entry,
            "queues": {"mail": {}},
            "job_types": {"send": {"queue": "mail", "per_user": {"database": "none", "provider": "smtp"}}},
            "providers": {"smtp": {"latency": latency.to_dict()}},
        }
    )


def run(topology: Topology, workload: Workload, workers: int, slots: int, seed: int) -> pd.DataFrame:
    """The model's attempts on a host where nothing but the provider takes time, in order of arrival."""
    deployment = Deployment(workers=workers, concurrency=slots)
    frame = Model(topology, deployment, workload, free_profile().costs(topology), seed).run().attempts()
    return frame.sort_values("event", key=lambda event: event.astype(int), kind="stable")


def stream(rate_per_s: float, jobs: int) -> Workload:
    return Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": rate_per_s, "duration_s": jobs / rate_per_s}})


@pytest.mark.parametrize("latency", SERVICES, ids=lambda latency: latency.kind)
@pytest.mark.parametrize(("workers", "slots", "rho"), [(1, 1, 0.8), (1, 5, 0.8), (2, 1, 0.7), (3, 2, 0.9)])
def test_a_stream_waits_as_its_recursion_says(latency: AnyDistribution, workers: int, slots: int, rho: float) -> None:
    servers = workers * slots
    rate = rho * servers / 0.1
    frame = run(single(latency), stream(rate, 600), workers, slots, seed=5)
    at, takes = poisson(5, rate, len(frame)), latencies(5, latency, len(frame))
    expected = begins(at, takes, servers)
    assert frame["started_at"].to_numpy() == pytest.approx(expected - at[0], abs=1e-9)
    assert frame["finished_at"].to_numpy() == pytest.approx(expected + takes - at[0], abs=1e-9)
    assert np.count_nonzero(expected > at) > 100


@pytest.mark.parametrize(("slots", "latency"), [(1, SERVICES[2]), (3, EXPONENTIAL)])
def test_four_priorities_wait_as_their_recursion_says(slots: int, latency: AnyDistribution) -> None:
    rate = 0.9 * slots / 0.1
    frame = run(single(latency, SHARES), stream(rate, 1_000), 1, slots, seed=6)
    at, takes = poisson(6, rate, len(frame)), latencies(6, latency, len(frame))
    level = levels(6, len(frame))
    assert frame["priority"].to_numpy() == pytest.approx(level + 1)
    assert frame["started_at"].to_numpy() == pytest.approx(begins(at, takes, slots, level) - at[0], abs=1e-9)


def levels(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which of `SHARES` each arrival falls into."""
    return np.searchsorted(np.cumsum(SHARES[:-1]), uniforms(seed, Stream.ARRIVAL, np.arange(1, count + 1), 1), "right")


@pytest.mark.parametrize(("servers", "rho"), [(1, 0.5), (2, 0.7), (5, 0.8)])
def test_the_recursion_is_an_m_m_c_queue_erlang_c(servers: int, rho: float) -> None:
    rate = rho * servers / 0.1
    at, takes = poisson(1, rate, 300_000), latencies(1, EXPONENTIAL, 300_000)
    waits = begins(at, takes, servers) - at
    ends, surprise = at + waits + takes, surprises(at, takes, waits, 1 / rate, 0.1, 1.0)
    assert theory.waiting_probability(rate * 0.1, servers) in mean_of((waits > 0) * 1.0, at, ends, surprise)
    assert theory.mmc_wait_s(rate, 0.1, servers) in mean_of(waits, at, ends, surprise)
    assert theory.mmc_latency_s(rate, 0.1, servers) in mean_of(waits + takes, at, ends, surprise)
    for q in (0.9, 0.99):
        wait_s = theory.mmc_wait_quantile_s(q, rate, 0.1, servers)
        latency_s = theory.mmc_latency_quantile_s(q, rate, 0.1, servers)
        assert q in mean_of((waits <= wait_s) * 1.0, at, ends, surprise)
        assert q in mean_of((waits + takes <= latency_s) * 1.0, at, ends, surprise)


@pytest.mark.parametrize("latency", SERVICES, ids=lambda latency: latency.kind)
@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_the_recursion_is_an_m_g_1_queue_pollaczek_khinchine(latency: AnyDistribution, rho: float) -> None:
    rate = rho / 0.1
    at, takes = poisson(2, rate, 1_000_000), latencies(2, latency, 1_000_000)
    waits = waits_of_one_server(at, takes)
    assert waits[:1_000] == pytest.approx(begins(at[:1_000], takes[:1_000], 1) - at[:1_000], abs=1e-8)
    cv = CV[latency.kind]
    found = mean_of(waits, at, at + waits + takes, surprises(at, takes, waits, 1 / rate, 0.1, cv))
    assert theory.mg1_wait_s(rate, 0.1, cv) in found
    assert found.half < 0.01 * found.mean


@pytest.mark.parametrize(("servers", "latency"), [(1, SERVICES[0]), (1, EXPONENTIAL), (3, EXPONENTIAL)])
def test_the_recursion_keeps_cobhams_four_priorities(servers: int, latency: AnyDistribution) -> None:
    rate = 0.8 * servers / 0.1
    at, takes, level = poisson(3, rate, 300_000), latencies(3, latency, 300_000), levels(3, 300_000)
    waits, cv = begins(at, takes, servers, level) - at, CV[latency.kind]
    found_s = begins(at, takes, servers) - at  # the work that an arrival finds, whoever goes first
    mix = np.array([[(level == n) - SHARES[n], ((level == n) - SHARES[n]) * found_s] for n in range(3)])
    surprise = np.column_stack([surprises(at, takes, found_s, 1 / rate, 0.1, cv), *mix.reshape(6, -1)])
    expected = theory.priority_wait_s(rate * np.array(SHARES), 0.1, cv, servers)
    for n in range(4):
        found = mean_of(waits, at, at + waits + takes, surprise, (level == n) * 1.0)
        assert expected[n] in found, LEVELS[n]
        assert found.half < 0.05 * found.mean


@pytest.mark.parametrize(("jobs", "workers", "slots"), [(1, 1, 3), (40, 1, 1), (40, 2, 3), (7, 4, 5)])
def test_a_burst_drains_as_its_recursion_says_and_within_grahams_bounds(jobs: int, workers: int, slots: int) -> None:
    latency = Lognormal(mean_s=0.1, cv=1.5)
    takes = latency.quantiles(uniforms(7, Stream.LATENCY, 1, np.arange(1, jobs + 1), 1))
    frame = run(single(latency), Workload.burst(jobs), workers, slots, seed=7)
    makespan = trace.makespan_s(frame)
    assert makespan == pytest.approx((begins(np.zeros(jobs), takes, workers * slots) + takes).max(), rel=1e-9)
    low, high = theory.makespan_bounds_s(takes, workers * slots)
    assert low * (1 - 1e-9) <= makespan <= high * (1 + 1e-9)
    assert high < 2 * low


def test_the_recursions_burst_of_exponential_jobs_is_a_death_process() -> None:
    takes = EXPONENTIAL.quantiles(uniforms(8, Stream.LATENCY, 1, np.arange(60_000), 1)).reshape(-1, 30)
    spans = [float((begins(np.zeros(30), row, 4) + row).max()) for row in takes]
    found = mean_by_replications(np.array(spans))
    assert theory.burst_makespan_s(30, 0.1, 4) in found
    assert theory.naive_makespan_s(30, 0.1, 4) not in found, "the last jobs leave slots idle"
