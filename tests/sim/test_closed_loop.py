"""The clients of a closed loop in the model: turns, think times, and the throughput that theory gives them."""

from __future__ import annotations

from itertools import pairwise
from math import comb, factorial
from typing import Any

import pandas as pd
import pytest
from simulated_run import free_profile, lab

import sim
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import ClosedLoop, Workload
from sim.engine.coverage import beyond_fast

ONE = {
    "name": "single",
    "entry": [{"job_type": "send"}],
    "queues": {"mail": {"concurrency": 2}},
    "job_types": {"send": {"queue": "mail", "per_user": {"database": "none", "provider": "smtp"}}},
    "providers": {"smtp": {"latency": {"kind": "exponential", "mean_s": 0.5}}},
}


def loop(clients: int, think: dict[str, Any], duration_s: float, **more: Any) -> ClosedLoop:
    return ClosedLoop.parse({"clients": clients, "think": think, "duration_s": duration_s, **more})


def attempts(topology: Topology, arrivals: ClosedLoop, **how: Any) -> pd.DataFrame:
    given: dict[str, Any] = {"replications": 1, "same_draw": True, **how}
    return sim.predict(topology, workload=Workload(arrivals=arrivals), **given).attempts


def test_each_client_sends_when_its_event_is_drained_and_it_has_thought() -> None:
    arrivals = loop(3, {"kind": "lognormal", "mean_s": 0.5}, 20.0, users_per_event=150)
    topology = lab(providers__email__temporary_share=0.02)
    rows = attempts(topology, arrivals, workers=2, seed=5)
    assert rows.groupby(["event", "job_type"])["users_done"].sum().max() <= 150
    grouped = rows.groupby(rows["event"].astype(int))
    sent, ended = grouped["event_at"].min().to_dict(), grouped["finished_at"].max().to_dict()
    by_client: dict[int, list[int]] = {}
    for event in sorted(rows["event"].astype(int).unique().tolist()):
        by_client.setdefault((event - 1) % 3 + 1, []).append(event)
    assert set(by_client) == {1, 2, 3}
    for client, numbers in by_client.items():
        assert numbers == [arrivals.event(client, turn) for turn in range(len(numbers))]
        assert sent[numbers[0]] == 0
        for turn, (before, after) in enumerate(pairwise(numbers)):
            known_s = arrivals.known_s(ended[before])
            assert sent[after] == pytest.approx(arrivals.next_s(5, client, turn, known_s), abs=1e-9)
        known_s = arrivals.known_s(ended[numbers[-1]])
        assert arrivals.next_s(5, client, len(numbers) - 1, known_s) is None
    assert len(sent) > 10
    assert (rows["outcome"] == "retry").any()


@pytest.mark.parametrize(("clients", "slots"), [(1, 1), (4, 1), (10, 3)])
def test_throughput_is_that_of_the_machine_repairmen(clients: int, slots: int) -> None:
    """Exponential times: the states of a birth-death chain (Palm, 1947), which vary less than a Poisson stream."""
    think_s, service_s, duration_s = 2.0, 0.5, 800.0
    arrivals = loop(clients, {"kind": "exponential", "mean_s": think_s - 0.005}, duration_s)  # known 5 ms later
    rows = attempts(Topology.parse(ONE), arrivals, profile=free_profile(), concurrency=slots, seed=2)
    weights = [
        comb(clients, n) * (service_s / think_s) ** n
        * (1 if n <= slots else factorial(n) / (factorial(slots) * slots ** (n - slots)))
        for n in range(clients + 1)
    ]  # fmt: skip
    busy = sum(min(n, slots) * weight for n, weight in enumerate(weights)) / sum(weights)
    served = len(rows[rows["event_at"] < duration_s])
    assert served / duration_s == pytest.approx(busy / service_s, rel=2 / served**0.5)


def test_without_any_time_to_think_or_serve_a_client_still_waits_for_its_next_look() -> None:
    instant = {**ONE, "providers": {"smtp": {"latency": {"kind": "constant", "mean_s": 0.0}}}}
    arrivals = loop(2, {"kind": "constant", "mean_s": 0.0}, 0.5)
    rows = attempts(Topology.parse(instant), arrivals, profile=free_profile())
    assert len(rows) == 2 * 50


def test_more_clients_and_shorter_thoughts_bring_more_events() -> None:
    topology = Topology.parse(ONE)
    few = len(attempts(topology, loop(2, {"kind": "constant", "mean_s": 1.0}, 60.0)))
    assert len(attempts(topology, loop(4, {"kind": "constant", "mean_s": 1.0}, 60.0))) > few
    assert len(attempts(topology, loop(2, {"kind": "constant", "mean_s": 0.1}, 60.0))) > few
    assert len(attempts(topology, loop(2, {"kind": "constant", "mean_s": 1.0}, 120.0))) > few


def test_the_draws_of_an_event_do_not_depend_on_when_it_comes() -> None:
    topology = lab(providers__email__permanent_share=0.2)
    slow = lab(providers__email__permanent_share=0.2, providers__email__latency__mean_s=0.1)
    arrivals = loop(2, {"kind": "exponential", "mean_s": 1.0}, 30.0, users_per_event=50)
    failed = [
        attempts(one, arrivals, seed=3).query("job_type == 'notify'").set_index("event")["users_failed"]
        for one in (topology, slow)
    ]
    both = failed[0].index.intersection(failed[1].index)
    assert len(both) > 5
    assert (failed[0][both] == failed[1][both]).all()


def test_a_worker_that_is_killed_holds_its_clients_up() -> None:
    workload = Workload(arrivals=loop(4, {"kind": "constant", "mean_s": 0.2}, 30.0))
    killed = Workload.parse({**workload.to_dict(), "faults": [{"kind": "kill_worker", "at_s": 5.0}]})
    topology = Topology.parse(ONE)
    rows = [sim.predict(topology, workload=w, replications=1, same_draw=True).attempts for w in (workload, killed)]
    assert (rows[1]["outcome"] == "lost").any()
    assert len(rows[1]) < len(rows[0])


def test_the_fast_engine_leaves_closed_loops_to_the_model() -> None:
    workload = Workload(arrivals=loop(2, {"kind": "constant", "mean_s": 1.0}, 5.0))
    assert "closed loop" in beyond_fast(Topology.parse(ONE), Deployment(), workload)
    assert beyond_fast(Topology.parse(ONE), Deployment(), Workload.burst(5)) == ""
