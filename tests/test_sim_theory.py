"""Where theory is exact, the model agrees with it."""

from __future__ import annotations

import heapq
from math import factorial, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from simulated_run import free_profile, lab

import sim
from saqkit.spec import pictures, trace
from saqkit.spec.draws import Stream, uniforms
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload

ONE_BY_ONE = {
    "name": "single",
    "entry": [{"job_type": "send"}],
    "queues": {"mail": {"concurrency": 2}},
    "job_types": {"send": {"queue": "mail", "per_user": {"database": "none", "provider": "smtp"}}},
    "providers": {"smtp": {"latency": {"kind": "exponential", "mean_s": 0.1}}},
}


def single(**provider: object) -> Topology:
    return Topology.parse({**ONE_BY_ONE, "providers": {"smtp": {**ONE_BY_ONE["providers"]["smtp"], **provider}}})  # type: ignore[index]


def erlang_c_wait_s(rate: float, service_s: float, servers: int) -> float:
    """Mean wait of an M/M/c queue (Erlang, 1917)."""
    load = rate * service_s
    last = load**servers / factorial(servers) * servers / (servers - load)
    wait = last / (sum(load**k / factorial(k) for k in range(servers)) + last)
    return wait * service_s / (servers - load)


def waits_by_recursion(rate: float, servers: int, customers: int, seed: int) -> NDArray[np.float64]:
    """Waits of a first-come-first-served queue from the kit's own draws (Kiefer & Wolfowitz, 1955)."""
    at = np.cumsum(-np.log(uniforms(seed, Stream.ARRIVAL, np.arange(customers))) / rate)
    service = -0.1 * np.log1p(-uniforms(seed, Stream.LATENCY, np.arange(1, customers + 1), 1, 1))
    free, waits = [0.0] * servers, np.empty(customers)
    for n, (arrives, takes) in enumerate(zip(at.tolist(), service.tolist(), strict=True)):
        begins = max(arrives, heapq.heappop(free))
        heapq.heappush(free, begins + takes)
        waits[n] = begins - arrives
    return waits


QUEUES = [(1, 0.5), (2, 0.7), (5, 0.8)]


@pytest.mark.parametrize(("servers", "rho"), QUEUES)
def test_single_jobs_on_slots_wait_as_the_recursion_of_their_queue_says(servers: int, rho: float) -> None:
    rate = rho * servers / 0.1
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": rate, "duration_s": 1000 / rate}})
    frame = sim.predict(
        single(), workload=workload, concurrency=servers, profile=free_profile(), replications=1, seed=5, same_draw=True
    ).attempts.sort_values("queued_at")
    waits = (frame["started_at"] - frame["ready_at"]).to_numpy()
    assert waits == pytest.approx(waits_by_recursion(rate, servers, len(waits), seed=5), abs=1e-9)
    assert waits.max() > 0


@pytest.mark.parametrize(("servers", "rho"), QUEUES)
def test_that_recursion_is_an_m_m_c_queue(servers: int, rho: float) -> None:
    """Erlang's formula, within 4 standard errors of 40 batch means of 10,000 customers."""
    rate = rho * servers / 0.1
    means = waits_by_recursion(rate, servers, 400_000, seed=1).reshape(40, -1).mean(axis=1)
    error = float(means.std(ddof=1)) / sqrt(len(means))
    assert abs(float(means.mean()) - erlang_c_wait_s(rate, 0.1, servers)) < 4 * error


def test_attempts_of_failing_sends_are_a_geometric_sum() -> None:
    topology = single(temporary_share=0.3)
    prediction = sim.predict(topology, users=4_000, concurrency=50, profile=free_profile(), replications=1)
    expected = 4_000 * (1 + 0.3 + 0.3**2)
    assert len(prediction.attempts) == pytest.approx(expected, abs=5 * sqrt(4_000 * 0.5))


@pytest.mark.parametrize(("slots", "cpu_us"), [(1, 0), (5, 2_000), (20, 5_000)])
def test_throughput_keeps_the_bounds_of_a_closed_network(slots: int, cpu_us: int) -> None:
    """Asymptotic bounds (Denning & Buzen, 1978): at most min(1/D, N/(Z + D)), at least N/(Z + N·D)."""
    topology = lab(
        job_types__notify__per_user__cpu_us=cpu_us,
        job_types__notify__per_user__database="none",
        providers__email__latency={"kind": "exponential", "mean_s": 0.02},
    )
    users = 200 * slots
    prediction = sim.predict(
        topology, users=users, concurrency=slots, batch_size=200, profile=free_profile(), replications=5, same_draw=True
    )
    z, d = 0.02, cpu_us * 1e-6
    throughput = prediction.combinations[0].measures["throughput_users_per_s"]["mean"]
    # The last batch ends later than the mean one: extremes of sums of 200 exponential times.
    tail = 1 + 3 / sqrt(200)
    assert slots / (z + slots * d) / tail <= throughput <= min(1 / d if d else 1e9, slots / (z + d)) * 1.05


def test_littles_law_holds_to_the_last_digit() -> None:
    frame = sim.predict(lab(), users=3_000, workers=2, replications=1).attempts
    times, waiting = pictures.jobs_waiting(frame)
    area = float((np.diff(times) * waiting[:-1]).sum())
    assert area == pytest.approx(float((frame["taken_at"] - frame["ready_at"]).sum()), rel=1e-9)
    assert waiting[-1] == 0


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_makespan_is_at_least_the_work_over_the_slots_and_the_longest_job(slots: int) -> None:
    frame = sim.predict(lab(), users=2_050, workers=2, concurrency=slots, replications=1).attempts
    service = frame["finished_at"] - frame["started_at"]
    assert trace.makespan_s(frame) >= max(float(service.sum()) / (2 * slots), float(service.max()))
    running = sorted([(t, 1) for t in frame["started_at"]] + [(t, -1) for t in frame["finished_at"]])
    assert max(np.cumsum([change for _, change in running])) <= 2 * slots


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"providers__email__temporary_share": 0.02, "providers__email__permanent_share": 0.05},
        {"providers__email__temporary_share": 1.0},
        {"providers__email__permanent_share": 1.0},
        {"job_types__notify__timeout_s": 0.7},
        {"job_types__notify__send_concurrency": 7, "job_types__announce__fan_out__page_size": 130},
        {"queues__notifications__rate_limit": {"limit": 150, "unit": "users"}},
        {"job_types__notify__per_user__database": "none", "job_types__notify__per_user__provider": "none"},
    ],
)
def test_every_user_is_served_or_fails_exactly_once(fields: dict[str, object]) -> None:
    frame = sim.predict(lab(**fields), users=777, workers=2, concurrency=4, batch_size=50, replications=1).attempts
    assert frame["users_done"].sum() + frame["users_failed"].sum() == 777
    trace.check(frame)
    ended = frame[frame["outcome"].isin(["done", "dead"])]
    assert ended["job"].is_unique
    assert set(ended["job"]) == set(frame["job"])
