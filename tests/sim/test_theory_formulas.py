"""The formulas themselves: against one another, against sums over all states, and against closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import factorial, inf, prod
from typing import Any

import numpy as np
import pytest

from saqkit.errors import UsageError
from sim.analysis import theory
from sim.analysis.networks import Station, closed_network, event_loops


@pytest.mark.parametrize("servers", [1, 2, 5, 40])
@pytest.mark.parametrize("rho", [0.05, 0.7, 0.99])
def test_erlangs_formula_is_the_sum_over_the_states_of_its_queue(servers: int, rho: float) -> None:
    load = rho * servers
    below = sum(load**n / factorial(n) for n in range(servers))
    above = load**servers / factorial(servers) / (1 - rho)
    assert theory.waiting_probability(load, servers) == pytest.approx(above / (above + below), rel=1e-12)
    # The mean number waiting, summed over the states n > c, by Little's law.
    waiting = above / (above + below) * rho / (1 - rho)
    assert theory.customers(load / 0.1, theory.mmc_wait_s(load / 0.1, 0.1, servers)) == pytest.approx(waiting)


def test_formulas_of_one_server_and_one_class_are_the_same_queue() -> None:
    rate, s = np.array([1.0, 5.0, 9.9]), 0.1
    assert theory.mmc_wait_s(rate, s, 1) == pytest.approx(theory.mg1_wait_s(rate, s, 1.0))
    assert theory.mg1_wait_s(rate, s, 0.0) == pytest.approx(theory.mg1_wait_s(rate, s, 1.0) / 2)
    for one in rate:
        assert theory.priority_wait_s([one], s, 0.7) == pytest.approx(theory.mg1_wait_s(one, s, 0.7))
        assert theory.priority_wait_s([3 * one], s, servers=3) == pytest.approx(theory.mmc_wait_s(3 * one, s, 3))


def test_a_latency_in_a_queue_of_one_server_is_exponential() -> None:
    q = np.array([0.5, 0.9, 0.999])
    assert theory.mmc_latency_quantile_s(q, 5, 0.1, 1) == pytest.approx(-np.log(1 - q) / 5)
    assert theory.mmc_latency_quantile_s(q, 1e-9, 0.1, 4) == pytest.approx(-0.1 * np.log(1 - q)), "nobody waits"


def test_quantiles_of_wait_and_latency_have_the_mean_of_their_formula() -> None:
    q = (np.arange(20_000) + 0.5) / 20_000
    for rate, servers in ((14.0, 2), (10.0, 2), (45.0, 5), (3.0, 1)):  # 10, 2: c - a = 1, where the formula is 0/0
        waits, latency = (f(q, rate, 0.1, servers) for f in (theory.mmc_wait_quantile_s, theory.mmc_latency_quantile_s))
        assert waits.mean() == pytest.approx(theory.mmc_wait_s(rate, 0.1, servers), rel=3e-4)
        assert latency.mean() == pytest.approx(theory.mmc_latency_s(rate, 0.1, servers), rel=3e-4)
        assert (np.diff(latency) > 0).all()


def test_priorities_move_waiting_between_classes_and_make_none() -> None:
    """Kleinrock's conservation law (1965): Σ ρᵢ·Wᵢ is the same as without priorities."""
    rates, s, cv = np.array([1.0, 0.5, 2.0, 0.8]), np.array([0.1, 0.4, 0.2, 0.15]), np.array([0.0, 2.0, 1.0, 0.5])
    waits, load = theory.priority_wait_s(rates, s, cv), rates * s
    residual_s = (rates * s**2 * (1 + cv**2)).sum() / 2
    assert (load * waits).sum() == pytest.approx(load.sum() * residual_s / (1 - load.sum()))
    assert (np.diff(theory.priority_wait_s([1, 1, 1, 1], 0.2)) > 0).all()


def test_at_capacity_waits_are_infinite_and_those_who_go_first_do_not_notice() -> None:
    assert theory.waiting_probability([4.0, 5.0, 6.0], 5)[1:].tolist() == [1.0, 1.0]
    for found in (
        theory.mmc_wait_s([10, 11], 0.1, 1),
        theory.mg1_wait_s([10, 11], 0.1, 0.5),
        theory.mmc_wait_quantile_s(0.5, [10, 11], 0.1, 1),
        theory.mmc_latency_s([10, 11], 0.1, 1),
        theory.mmc_latency_quantile_s(0.5, [10, 11], 0.1, 1),
    ):
        assert np.isinf(found).all()
    waits = theory.priority_wait_s([3, 3, 3, 3], 0.1)
    assert waits[:3] == pytest.approx([0.1 / 0.7, 0.1 / 0.7 / 0.4, 0.1 / 0.4 / 0.1])
    assert waits[3] == inf


def test_arrays_give_what_their_numbers_give() -> None:
    rates, servers = np.array([[1.0], [30.0]]), np.array([1, 4, 50])
    for f in (theory.mmc_wait_s, theory.mmc_latency_s):
        each = [[float(f(rate, 0.1, c)) for c in servers] for rate in rates[:, 0]]
        assert f(rates, 0.1, servers).tolist() == each
    each = [[float(theory.mmc_latency_quantile_s(0.9, rate, 0.1, c)) for c in servers] for rate in rates[:, 0]]
    assert theory.mmc_latency_quantile_s(0.9, rates, 0.1, servers).tolist() == each


def test_bursts_and_envelopes() -> None:
    assert theory.makespan_bounds_s([3.0, 1.0, 2.0], 2) == (3.0, 4.5)
    assert theory.makespan_bounds_s([], 2) == (0.0, 0.0)
    assert theory.burst_makespan_s(3, 0.6, 2) == pytest.approx(0.3 + 0.3 + 0.6)
    assert theory.naive_makespan_s([100, 1_000], 0.075, 10).tolist() == [0.75, 7.5]
    assert theory.naive_latency_quantile_s(0.95, 1_000, 0.075, 10) == pytest.approx(0.95 * 7.5)
    assert theory.poll_wait_s(0.2) == 0.1
    assert theory.throughput_bounds_per_s(10, [0.01, 0.05], 0.2) == pytest.approx((10 / 0.8, 1 / 0.05))


def test_attempts_of_a_job_whose_sends_fail() -> None:
    assert theory.expected_attempts(0.3, 3) == pytest.approx(1 + 0.3 + 0.09)
    assert theory.expected_attempts([0.0, 1.0], 4).tolist() == [1.0, 4.0]
    assert theory.expected_attempts(0.1, 2, users=[1, 100]) == pytest.approx([1.1, 2 - 0.9**100])
    assert theory.served_share(0.5, 3, 0.1) == pytest.approx(0.9 * 0.875)


WRONG: list[tuple[Any, tuple[Any, ...], str]] = [
    (theory.mmc_wait_s, (-1, 0.1, 1), "rate_per_s=-1"),
    (theory.mmc_wait_s, (1, float("nan"), 1), "service_s=nan"),
    (theory.mmc_wait_s, (1, 0.1, 0), "servers=0"),
    (theory.mmc_wait_s, (1, 0.1, 1.5), "servers=1.5"),
    (theory.mmc_wait_quantile_s, (1.01, 1, 0.1, 1), "q=1.01"),
    (theory.mg1_wait_s, (1, 0.1, [-0.5, 1]), r"cv=\[-0.5, 1\]"),
    (theory.priority_wait_s, ([1, 1], [0.1, 0.2], 1.0, 2), "more than one server"),
    (theory.expected_attempts, (1.2, 3), "temporary_share=1.2"),
    (theory.expected_attempts, (0.2, 0), "max_attempts=0"),
    (theory.naive_makespan_s, (100, 0.1, 0), "slots=0"),
    (theory.throughput_bounds_per_s, (3, [0.0]), "takes no time"),
    (closed_network, ([], {}), "customers for each class"),
    (closed_network, ([3], {"a": Station([1.0, 2.0])}), "station a"),
    (closed_network, ([3], {"a": Station([1.0], 0)}), "station a: servers=0"),
    (closed_network, ([3], {"a": Station([0.0])}), "takes no time"),
    (closed_network, ([100] * 4, {"a": Station([1.0] * 4)}), "104,060,401 populations"),
]


@pytest.mark.parametrize(("function", "arguments", "text"), WRONG)
def test_what_means_nothing_is_refused(function: Any, arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        function(*arguments)


def ways(customers: int, places: int) -> Iterator[tuple[int, ...]]:
    if places == 1:
        yield (customers,)
        return
    for here in range(customers + 1):
        yield from ((here, *rest) for rest in ways(customers - here, places - 1))


def summed(circulating: list[int], stations: dict[str, Station]) -> float:
    """The normalising constant of a closed network: the sum over all its states (Baskett and others, 1975)."""
    total = 0.0
    for state in product(*(ways(n, len(stations)) for n in circulating)):
        weight = 1.0
        for k, station in enumerate(stations.values()):
            here = [of_class[k] for of_class in state]
            weight *= factorial(sum(here)) / prod(min(j, station.servers) for j in range(1, sum(here) + 1))
            weight *= prod(d**n / factorial(n) for d, n in zip(station.demands_s, here, strict=True))
        total += weight
    return total


NETWORKS: list[tuple[list[int], dict[str, Station]]] = [
    ([6], {"cpu": Station([0.3]), "disk": Station([0.5], 2), "z": Station([1.0], inf)}),
    ([7], {"a": Station([2.0], 3), "b": Station([1.5], 2)}),
    ([3, 2], {"a": Station([0.2, 0.0]), "b": Station([0.0, 0.4]), "c": Station([0.3, 0.3]), "z": Station([1, 2], inf)}),
    ([2, 3], {"a": Station([0.5, 0.5], 3), "b": Station([0.1, 0.0]), "z": Station([1.0, 0.0], inf)}),
    ([4], {"a": Station([1.0], 9), "b": Station([0.2])}),
]


@pytest.mark.parametrize(("circulating", "stations"), NETWORKS)
def test_mean_value_analysis_is_the_sum_over_all_states(circulating: list[int], stations: dict[str, Station]) -> None:
    found, whole = closed_network(circulating, stations), summed(circulating, stations)
    for r in range(len(circulating)):
        fewer = [n - (r == other) for other, n in enumerate(circulating)]
        assert found.throughput_per_s[r] == pytest.approx(summed(fewer, stations) / whole, rel=1e-12)
    assert sum(found.present.values()) == pytest.approx(circulating)
    cycle_s = sum(found.residence_s.values())
    assert found.throughput_per_s * cycle_s == pytest.approx(circulating), "Little's law of the whole network"


def test_mean_value_analysis_stays_exact_with_many_servers_and_customers() -> None:
    """300 customers at 60 servers: the plain recursion, with p(0) as 1 - Σp, says -21 per second here, not 60."""
    found = closed_network([300], {"slots": Station([1.0], 60), "z": Station([2.0], inf)})
    assert found.throughput_per_s[0] == pytest.approx(60, rel=1e-12)
    assert found.present["slots"][0] == pytest.approx(300 - 60 * 2)
    load = 150 / (1 + 2)  # few customers: the finite-source formula, summed
    weights = [prod((150 - j) / (2 * min(j + 1, 60)) for j in range(n)) for n in range(151)]
    busy = sum(min(n, 60) * w for n, w in enumerate(weights)) / sum(weights)
    found = closed_network([150], {"slots": Station([1.0], 60), "z": Station([2.0], inf)})
    assert found.throughput_per_s[0] == pytest.approx(busy, rel=1e-12)
    assert busy < load


@pytest.mark.parametrize(("workers", "slots"), [(1, 5), (1, 20), (2, 10), (3, 6)])
def test_line_says_the_same_of_the_event_loops(workers: int, slots: int) -> None:
    """LINE (Casale and others) is asked where it is installed; it is no requirement of ours."""
    line = pytest.importorskip("line_solver", reason="LINE (pip install line-solver) is not installed")
    network = line.Network("event loops")
    provider, broker = line.Delay(network, "provider"), line.Queue(network, "broker", line.SchedStrategy.FCFS)
    loops = [line.Queue(network, f"loop{w}", line.SchedStrategy.FCFS) for w in range(workers)]
    classes = [line.ClosedClass(network, f"worker{w}", slots, provider, 0) for w in range(workers)]
    for loop, of_worker in zip(loops, classes, strict=True):
        for station, mean_s in ((provider, 0.02), (broker, 0.001), (loop, 0.002)):
            station.set_service(of_worker, line.Exp(1 / mean_s))
    routes = network.init_routing_matrix()
    for loop, of_worker in zip(loops, classes, strict=True):
        for start, end in ((loop, broker), (broker, provider), (provider, loop)):
            routes.set(of_worker, of_worker, start, end, 1.0)
    network.link(routes)
    table = line.MVA(network, method="exact", verbose=False).avg_table()
    ours = event_loops(workers, slots, 0.002, 0.001, 0.02)
    for station, present, rate in zip(table["Station"], table["QLen"], table["Tput"], strict=True):
        name = str(station).replace("loop", "loop ")
        assert rate == pytest.approx(ours.throughput_per_s[0], rel=1e-5)
        assert present == pytest.approx(ours.present[name].max(), rel=1e-5)
